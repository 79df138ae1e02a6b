//! How far a call has come, and whether anybody still waits for it.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Set once the caller has been answered, or has left.
const OVER: u32 = 1 << 31;

/// How far a call has come: written by the one that sends, read by the one that answers. What the caller is told and
/// what is sent can never contradict each other: after [`Progress::close`] no further PUT is begun.
#[derive(Debug, Default)]
pub struct Progress {
    attempts: AtomicU32,
    begun: AtomicU16,
}

impl Progress {
    /// How many PUTs were begun. Zero: no byte of the update has left.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Acquire) & !OVER
    }

    /// The status of an answer that shows that the update was applied, even if its body never arrives whole.
    pub fn begun(&self) -> Option<u16> {
        Some(self.begun.load(Ordering::Acquire)).filter(|status| *status != 0)
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

    /// An answer has begun that shows that the update was applied.
    pub(super) fn applied(&self, status: u16) {
        self.begun.store(status, Ordering::Release);
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
