//! The pause that the upstream asked for: until it is over nothing is sent, for every further call would only use up
//! more of the account's limit.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Open until the upstream asks for a pause.
#[derive(Debug, Default)]
pub(super) struct QuotaGate(Mutex<Option<Instant>>);

impl QuotaGate {
    /// How long the pause still is; `None` if there is none.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until
            .map(|until| until.saturating_duration_since(now))
            .filter(|left| !left.is_zero())
    }

    /// The upstream asks for a pause from now on. A longer one that it asked for before still holds.
    pub(super) fn pause(&self, now: Instant, wait: Duration) {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Some(now + wait));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_until_the_pause_is_over() {
        let (gate, now, second) = (QuotaGate::default(), Instant::now(), Duration::from_secs(1));
        assert_eq!(gate.left(now), None);
        gate.pause(now, 3 * second);
        gate.pause(now, second);
        assert_eq!(gate.left(now + second), Some(2 * second));
        assert_eq!(gate.left(now + 3 * second), None);
    }
}
