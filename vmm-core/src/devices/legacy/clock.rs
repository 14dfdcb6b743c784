//! The host's clocks as devices see them, so that tests can turn them.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// Tells the time.
pub trait Clock: Send + Sync {
    /// UTC, nanoseconds since 1970; it may jump.
    fn wall(&self) -> i64;
    /// Nanoseconds since some moment; it never goes back.
    fn monotonic(&self) -> u64;
}

/// The host's own clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct HostClock;

fn nanoseconds(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is ours. It can't fail for the two clocks that are asked for.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

impl Clock for HostClock {
    fn wall(&self) -> i64 {
        nanoseconds(libc::CLOCK_REALTIME)
    }

    fn monotonic(&self) -> u64 {
        nanoseconds(libc::CLOCK_MONOTONIC) as u64
    }
}

/// A timer whose descriptor a task waits on. It is never read: each expiry is an edge, which is all that is needed.
pub(super) struct Timer(TimerFd);

impl Timer {
    pub(super) fn new() -> std::io::Result<Timer> {
        Ok(Timer(TimerFd::new()?))
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Whether it has yet to expire.
    pub(super) fn is_armed(&mut self) -> bool {
        self.0.is_armed().unwrap_or(false)
    }

    /// Expires once after `delay`, or never.
    pub(super) fn arm(&mut self, delay: Option<Duration>) {
        // A timer that is set to 0 is off, so what is due at once is due in a nanosecond.
        let delay = delay.map_or(Duration::ZERO, |d| d.max(Duration::from_nanos(1)));
        // It fails only for times that do not fit the kernel's type; those never come.
        let _ = self.0.reset(delay, None);
    }
}

#[cfg(test)]
pub(super) mod fake {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::Clock;

    /// A clock that stands still until it is turned.
    #[derive(Default, Clone)]
    pub struct FakeClock(Arc<AtomicI64>);

    impl FakeClock {
        pub fn at(nanoseconds: i64) -> FakeClock {
            FakeClock(Arc::new(AtomicI64::new(nanoseconds)))
        }

        pub fn turn(&self, nanoseconds: i64) {
            self.0.fetch_add(nanoseconds, Ordering::SeqCst);
        }
    }

    impl Clock for FakeClock {
        fn wall(&self) -> i64 {
            self.0.load(Ordering::SeqCst)
        }

        fn monotonic(&self) -> u64 {
            self.0.load(Ordering::SeqCst) as u64
        }
    }
}
