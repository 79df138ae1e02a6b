//! How many calls are taken at one time: a call over the limit waits in a short queue, one over that is refused at once.
//! Health checks and reflection do not come through here, so they are never refused.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{Metrics, Resource, Used};

/// The limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most calls under way.
    pub in_flight: usize,
    /// The most calls that wait for one of them to end.
    pub queued: usize,
}

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Both limits are reached.
    Overloaded,
    /// The process is about to leave.
    Draining,
}

/// The door of the façade.
#[derive(Debug)]
pub struct Admission {
    slots: Arc<Semaphore>,
    queued: AtomicUsize,
    max_queued: usize,
    draining: AtomicBool,
    metrics: Metrics,
}

/// A call that is under way. Dropping it makes room for the next.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    _used: Used,
}

impl Admission {
    /// Open, within these limits.
    pub fn new(limits: Limits, metrics: &Metrics) -> Self {
        metrics.limit(Resource::Calls, limits.in_flight);
        metrics.limit(Resource::QueuedCalls, limits.queued);
        Admission {
            metrics: metrics.clone(),
            slots: Arc::new(Semaphore::new(limits.in_flight)),
            queued: AtomicUsize::new(0),
            max_queued: limits.queued,
            draining: AtomicBool::new(false),
        }
    }

    /// Takes a call, at once or after a wait in the queue. Whoever stops waiting leaves the queue.
    pub async fn admit(&self) -> Result<Slot, Refusal> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        if let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(self.slot(permit));
        }
        let _place = Place::take(&self.queued, self.max_queued).ok_or(Refusal::Overloaded)?;
        let _used = self.metrics.using(Resource::QueuedCalls);
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        permit
            .map(|permit| self.slot(permit))
            .map_err(|_closed| Refusal::Draining)
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        Slot {
            _permit: permit,
            _used: self.metrics.using(Resource::Calls),
        }
    }

    /// Takes no further calls; those that wait are still taken.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(queued: &'a AtomicUsize, max: usize) -> Option<Self> {
        let room = |taken| (taken < max).then_some(taken + 1);
        queued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, room)
            .ok()
            .map(|_| Place(queued))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    fn poll<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> std::task::Poll<F::Output> {
        future
            .as_mut()
            .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn in_flight_then_queued_then_refused() {
        let limits = Limits {
            in_flight: 1,
            queued: 1,
        };
        let door = Admission::new(limits, &Metrics::default());
        let first = door.admit().await.unwrap();
        let mut second = Box::pin(door.admit());
        assert!(poll(&mut second).is_pending());
        assert_eq!(door.admit().await.unwrap_err(), Refusal::Overloaded);
        drop(first);
        let second = second.await.unwrap();

        // Whoever leaves the queue makes room in it.
        let mut impatient = Box::pin(door.admit());
        assert!(poll(&mut impatient).is_pending());
        drop(impatient);
        let mut third = Box::pin(door.admit());
        assert!(poll(&mut third).is_pending());

        // Draining: those that wait are still taken, further ones are not.
        door.drain();
        assert_eq!(door.admit().await.unwrap_err(), Refusal::Draining);
        drop(second);
        third.await.unwrap();
    }
}
