//! How far a call has come, and whether anybody still waits for it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// Set once the caller has been answered, or has left.
const OVER: u32 = 1 << 31;

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
/// what is sent can never contradict each other: after [`Progress::close`] no further PUT is begun.
#[derive(Debug, Default)]
pub struct Progress {
    attempts: AtomicU32,
    /// The fate: an HTTP status for [`Fate::Applied`], else one of the numbers below.
    fate: AtomicU16,
}

const NOT_SENT: u16 = 0;
const REJECTED: u16 = 1;
const UNKNOWN: u16 = 2;

impl Progress {
    /// How many PUTs were begun.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Acquire) & !OVER
    }

    /// What is known of the update now.
    pub fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            NOT_SENT => Fate::NotSent,
            REJECTED => Fate::Rejected,
            UNKNOWN => Fate::Unknown,
            status => Fate::Applied(status),
        }
    }

    /// The caller is being answered, or has left: what is under way is seen through, nothing more is begun.
    pub fn close(&self) {
        self.attempts.fetch_or(OVER, Ordering::AcqRel);
    }

    /// Begins a PUT. False if nobody waits for it any more: then nothing may be sent.
    pub(crate) fn begin(&self) -> bool {
        let open = |attempts| (attempts & OVER == 0).then_some(attempts + 1);
        self.attempts
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, open)
            .is_ok()
    }

    /// The update is about to be written to a connection.
    pub(crate) fn sent(&self) {
        self.fate.store(UNKNOWN, Ordering::Release);
    }

    /// What was sent was refused.
    pub(super) fn rejected(&self) {
        self.fate.store(REJECTED, Ordering::Release);
    }

    /// An answer has begun that shows that the update was applied.
    pub(super) fn applied(&self, status: u16) {
        self.fate.store(status, Ordering::Release);
    }
}

/// The body of a PUT, which tells when it is about to be sent. Until then a request, whatever becomes of its connection,
/// cannot have changed anything.
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
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.progress.sent();
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
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
    fn nothing_is_begun_once_the_caller_is_answered() {
        let progress = Progress::default();
        assert!(progress.begin());
        progress.close();
        assert!(!progress.begin());
        assert_eq!(progress.attempts(), 1);
    }
}
