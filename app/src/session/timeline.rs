//! The thread that takes the points of a machine's timeline when they are due.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::Session;

/// Seconds until a point that could not be taken is tried again.
const RETRY: u64 = 60;

/// Wakes the thread: how the timeline is kept has changed.
pub(super) struct Alarm(OwnedFd);

impl Alarm {
    /// One that nobody waits for yet.
    pub fn new() -> io::Result<Alarm> {
        Ok(Alarm(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Has the thread look at once.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Starts the thread; it ends with the machine.
pub(super) fn start(session: &Arc<Session>) -> io::Result<()> {
    let session = Arc::downgrade(session);
    thread::Builder::new().name("timeline".into()).spawn(move || keep(&session)).map(drop)
}

fn keep(session: &Weak<Session>) {
    let mut complaint = None;
    loop {
        let Some(session) = session.upgrade().filter(|session| !session.has_stopped()) else { return };
        let next = match session.go_on_with_timeline() {
            Ok(next) => {
                complaint = None;
                next
            }
            Err(why) => {
                // Said once, however often it is tried.
                if complaint.as_ref() != Some(&why) && !session.has_stopped() {
                    session.note(&format!("The timeline has no new checkpoint: {why}."));
                }
                complaint = Some(why);
                Some(RETRY)
            }
        };
        let timeout = next.map(|seconds| Timespec { tv_sec: seconds as i64, tv_nsec: 0 });
        let mut fds = [
            PollFd::from_borrowed_fd(session.stopped(), PollFlags::IN),
            PollFd::from_borrowed_fd(session.alarm.0.as_fd(), PollFlags::IN),
        ];
        // Interrupted: it looks again.
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&session.alarm.0, &mut [0; 8]);
    }
}
