//! The circuit breaker: while most of what is sent fails, nothing is sent but a probe now and then.
//!
//! A state machine without a clock and without dice of its own: both are passed in.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// The window over which failures are counted, and its parts.
const WINDOW: Duration = Duration::from_secs(10);
const BUCKET: Duration = Duration::from_secs(1);
/// Below so many calls in the window a rate says nothing.
const MIN_CALLS: u32 = 20;
/// It opens when at least half of the calls in the window failed.
const MAX_FAILED_PERCENT: u32 = 50;
/// How long it stays open before a probe: up to half as long again, so that replicas do not probe as one.
const OPEN: Duration = Duration::from_secs(5);

/// What an attempt says of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It answers, whatever it says.
    Alive,
    /// It fails.
    Failing,
    /// Nothing.
    None,
}

/// The breaker of one upstream.
#[derive(Debug)]
pub(super) struct Breaker {
    enabled: bool,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
}

#[derive(Debug)]
enum State {
    /// Counting, newest bucket last: when it began, its calls, and the failed ones among them.
    Closed(Vec<(Instant, u32, u32)>),
    /// Nothing is sent until then.
    Open(Instant),
    /// One probe is under way.
    Probing,
}

/// Leave to send once. If it is dropped without a sign, it never was.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(enabled: bool) -> Self {
        Breaker {
            enabled,
            state: Mutex::new(State::Closed(Vec::new())),
            closed: watch::Sender::new(true),
        }
    }

    /// Tells whether it is closed, and each change of that.
    pub(super) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    /// Asks for leave to send, or says how long it is until the next probe.
    pub(super) fn admit(&self, now: Instant) -> Result<Leave<'_>, Duration> {
        let mut state = self.lock();
        let probe = match *state {
            State::Closed(_) => false,
            State::Open(until) if now >= until => {
                *state = State::Probing;
                true
            }
            State::Open(until) => return Err(until - now),
            State::Probing => return Err(BUCKET),
        };
        Ok(Leave {
            breaker: self,
            probe,
        })
    }

    fn record(&self, sign: Sign, probe: bool, now: Instant, dice: f64) {
        let mut state = self.lock();
        let next = match (&mut *state, sign) {
            _ if !self.enabled => None,
            (State::Probing, Sign::Alive) if probe => Some(State::Closed(Vec::new())),
            (State::Probing, Sign::Failing) if probe => Some(opened(now, dice)),
            (State::Probing, Sign::None) if probe => Some(State::Open(now)),
            // What was sent before it opened says nothing new.
            (State::Probing | State::Open(_), _) | (State::Closed(_), Sign::None) => None,
            (State::Closed(buckets), sign) => {
                count(buckets, sign, now);
                let (calls, failed) = buckets
                    .iter()
                    .fold((0, 0), |sum, bucket| (sum.0 + bucket.1, sum.1 + bucket.2));
                let fails = calls >= MIN_CALLS && failed * 100 >= calls * MAX_FAILED_PERCENT;
                fails.then(|| opened(now, dice))
            }
        };
        if let Some(next) = next {
            *state = next;
            let closed = matches!(*state, State::Closed(_));
            self.closed
                .send_if_modified(|was| std::mem::replace(was, closed) != closed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave<'_> {
    /// Says what came of it.
    pub(super) fn record(mut self, sign: Sign, now: Instant, dice: f64) {
        self.breaker
            .record(sign, std::mem::take(&mut self.probe), now, dice);
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.record(Sign::None, true, Instant::now(), 0.0);
        }
    }
}

fn opened(now: Instant, dice: f64) -> State {
    State::Open(now + OPEN.mul_f64(1.0 + dice / 2.0))
}

fn count(buckets: &mut Vec<(Instant, u32, u32)>, sign: Sign, now: Instant) {
    buckets.retain(|bucket| now - bucket.0 < WINDOW);
    if buckets.last().is_none_or(|bucket| now - bucket.0 >= BUCKET) {
        buckets.push((now, 0, 0));
    }
    if let Some(bucket) = buckets.last_mut() {
        bucket.1 += 1;
        bucket.2 += u32::from(sign == Sign::Failing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(breaker: &Breaker, sign: Sign, times: u32, now: Instant) {
        for _ in 0..times {
            breaker.admit(now).unwrap().record(sign, now, 0.0);
        }
    }

    fn open(now: Instant) -> Breaker {
        let breaker = Breaker::new(true);
        say(&breaker, Sign::Failing, MIN_CALLS, now);
        assert!(!*breaker.closed().borrow());
        breaker
    }

    /// How many calls say what, and whether it is open after that.
    #[tokio::test(start_paused = true)]
    async fn it_opens_by_rate_over_enough_calls() {
        let cases = [
            (0, MIN_CALLS - 1, false),
            (0, MIN_CALLS, true),
            (10, 10, true),
            (11, 10, false),
            (1000, 999, false),
        ];
        for (alive, failing, opens) in cases {
            let breaker = Breaker::new(true);
            let now = Instant::now();
            say(&breaker, Sign::Alive, alive, now);
            say(&breaker, Sign::Failing, failing, now);
            assert_eq!(breaker.admit(now).is_err(), opens, "{alive} {failing}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_the_window_does_not_count() {
        let breaker = Breaker::new(true);
        let now = Instant::now();
        say(&breaker, Sign::Failing, MIN_CALLS - 1, now);
        say(&breaker, Sign::Failing, 1, now + WINDOW);
        assert!(breaker.admit(now + WINDOW).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_decides() {
        for (sign, closes) in [(Sign::Alive, true), (Sign::Failing, false)] {
            let now = Instant::now();
            let breaker = open(now);
            assert_eq!(breaker.admit(now).unwrap_err(), OPEN);
            let later = now + OPEN;
            let probe = breaker.admit(later).unwrap();
            assert!(breaker.admit(later).is_err(), "one probe at a time");
            probe.record(sign, later, 1.0);
            assert_eq!(breaker.admit(later).is_ok(), closes);
            assert_eq!(*breaker.closed().borrow(), closes);
            if !closes {
                assert_eq!(breaker.admit(later).unwrap_err(), OPEN.mul_f64(1.5));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_comes_to_nothing_makes_room_for_the_next() {
        let now = Instant::now();
        let breaker = open(now);
        tokio::time::advance(OPEN).await;
        drop(breaker.admit(Instant::now()).unwrap());
        breaker
            .admit(Instant::now())
            .unwrap()
            .record(Sign::None, Instant::now(), 0.0);
        breaker
            .admit(Instant::now())
            .unwrap()
            .record(Sign::Alive, Instant::now(), 0.0);
        assert!(*breaker.closed().borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_before_it_opened_does_not_close_it() {
        let now = Instant::now();
        let breaker = Breaker::new(true);
        let early = breaker.admit(now).unwrap();
        say(&breaker, Sign::Failing, MIN_CALLS, now);
        early.record(Sign::Alive, now, 0.0);
        assert!(breaker.admit(now).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn switched_off_it_never_opens() {
        let breaker = Breaker::new(false);
        say(&breaker, Sign::Failing, 1000, Instant::now());
        assert!(breaker.admit(Instant::now()).is_ok());
    }
}
