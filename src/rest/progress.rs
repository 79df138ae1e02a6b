//! How far a call has come, and whether anybody still waits for it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// What is known of an update while its call is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No byte of it has left.
    NotSent,
    /// It was sent, and refused.
    Rejected,
    /// It is being sent, or was sent, and nothing is known of it.
    Unknown,
    /// An answer of this status has begun that shows that it was applied.
    Applied(u16),
}

/// How far a call has come: written by the one that sends, read by the one that answers. What the caller is told and
/// what is sent can never contradict each other: after [`Progress::close`] nothing further is sent.
///
/// One number holds it all, so that no step can fall between two others: the fate in the low 16 bits, the count of
/// attempts above, and the highest bit when the caller is answered.
#[derive(Debug, Default)]
pub struct Progress {
    state: AtomicU32,
    /// The microseconds that PUTs took.
    spent: AtomicU64,
}

const FATE: u32 = 0xffff;
const NOT_SENT: u32 = 0;
const REJECTED: u32 = 1;
const UNKNOWN: u32 = 2;
const ONE_ATTEMPT: u32 = 1 << 16;
const ANSWERED: u32 = 1 << 31;

impl Progress {
    /// How many PUTs were begun.
    pub fn attempts(&self) -> u32 {
        (self.load() & !ANSWERED) / ONE_ATTEMPT
    }

    /// What is known of the update now.
    pub fn fate(&self) -> Fate {
        match self.load() & FATE {
            NOT_SENT => Fate::NotSent,
            REJECTED => Fate::Rejected,
            UNKNOWN => Fate::Unknown,
            status => Fate::Applied(u16::try_from(status).unwrap_or_default()),
        }
    }

    /// How long PUTs took, all in all.
    pub fn spent(&self) -> Duration {
        Duration::from_micros(self.spent.load(Ordering::Relaxed))
    }

    /// A PUT took so long.
    pub(super) fn spend(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.spent.fetch_add(took, Ordering::Relaxed);
    }

    /// The caller is being answered, or has left: what was sent is seen through, nothing more is sent.
    pub fn close(&self) {
        self.state.fetch_or(ANSWERED, Ordering::AcqRel);
    }

    /// Whether the caller was answered, or has left.
    pub(super) fn is_closed(&self) -> bool {
        self.load() & ANSWERED != 0
    }

    /// Begins a PUT. False if nobody waits for it any more: then nothing may be sent.
    pub(crate) fn begin(&self) -> bool {
        self.unless_answered(|now| now + ONE_ATTEMPT)
    }

    /// The update is about to be written to a connection. False if nobody waits for it any more: then it must not be.
    pub(crate) fn send(&self) -> bool {
        self.unless_answered(|now| now & !FATE | UNKNOWN)
    }

    /// What was sent was refused.
    pub(super) fn rejected(&self) {
        self.learn(REJECTED);
    }

    /// What was sent was not looked at.
    pub(super) fn not_sent(&self) {
        self.learn(NOT_SENT);
    }

    /// An answer has begun that shows that the update was applied.
    pub(super) fn applied(&self, status: u16) {
        self.learn(status.into());
    }

    fn load(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    fn learn(&self, fate: u32) {
        let learnt = |now| Some(now & !FATE | fate);
        let _ = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, learnt);
    }

    fn unless_answered(&self, next: impl Fn(u32) -> u32) -> bool {
        let next = |now| (now & ANSWERED == 0).then(|| next(now));
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .is_ok()
    }
}

/// The body of a PUT, which tells when it is about to be sent, and is not sent if nobody waits for it any more. Until then
/// a request, whatever becomes of its connection, cannot have changed anything.
pub(super) struct Update {
    bytes: Option<Bytes>,
    progress: Arc<Progress>,
}

impl Update {
    pub(super) fn new(bytes: Vec<u8>, progress: Arc<Progress>) -> Self {
        Update {
            bytes: Some(bytes.into()),
            progress,
        }
    }
}

impl Body for Update {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(bytes) = self.bytes.take() else {
            return Poll::Ready(None);
        };
        let leave = self.progress.send();
        Poll::Ready(Some(
            leave
                .then(|| Frame::data(bytes))
                .ok_or_else(|| io::Error::other("nobody waits")),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_beginning_to_end() {
        let progress = Progress::default();
        assert_eq!((progress.attempts(), progress.fate()), (0, Fate::NotSent));
        assert!(progress.begin() && progress.send());
        assert_eq!((progress.attempts(), progress.fate()), (1, Fate::Unknown));
        progress.rejected();
        assert!(progress.begin());
        assert_eq!((progress.attempts(), progress.fate()), (2, Fate::Rejected));
        assert!(progress.send());
        progress.close();
        progress.applied(200);
        assert_eq!(
            (progress.attempts(), progress.fate()),
            (2, Fate::Applied(200))
        );
    }

    #[test]
    fn nothing_is_sent_once_the_caller_is_answered() {
        let progress = Progress::default();
        assert!(progress.begin());
        progress.close();
        assert!(!progress.send() && !progress.begin());
        assert_eq!((progress.attempts(), progress.fate()), (1, Fate::NotSent));
    }
}
