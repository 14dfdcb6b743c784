//! Runs jobs on an io_uring of its own. Completions signal the owner's eventfd.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::job::{Call, Step, perform};
use super::pool::{Ended, Running};

/// Calls in the kernel at once; more wait here. A ring this size takes 12 KiB.
const ENTRIES: u32 = 128;

pub(super) struct Uring<T> {
    ring: IoUring,
    /// By slot, which is what the kernel knows a call by.
    jobs: Vec<Option<Box<Running<T>>>>,
    free: Vec<usize>,
    /// Calls for which the ring has no room yet.
    backlog: VecDeque<(usize, Call)>,
    /// Calls in the ring.
    issued: usize,
    done: VecDeque<Ended<T>>,
}

impl<T> Uring<T> {
    /// Fails where the host does not allow it.
    pub fn new(event: RawFd) -> io::Result<Uring<T>> {
        let ring = IoUring::new(ENTRIES)?;
        ring.submitter().register_eventfd(event)?;
        let (jobs, free, backlog, done) = (Vec::new(), Vec::new(), VecDeque::new(), VecDeque::new());
        Ok(Uring { ring, jobs, free, backlog, issued: 0, done })
    }

    pub fn start(&mut self, running: Running<T>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[slot] = Some(Box::new(running));
        self.step(slot);
    }

    /// Takes a job to its next call, or its end.
    fn step(&mut self, slot: usize) {
        while let Some(running) = &mut self.jobs[slot] {
            let Running { job, image, .. } = &mut **running;
            match job.next(image) {
                Step::Call(call @ Call::Discard { .. }) => job.result(image, perform(call, image)),
                Step::Call(call) => return self.backlog.push_back((slot, call)),
                Step::Done(result) => {
                    if let Some(running) = self.jobs[slot].take() {
                        // The job's buffers go here, before the end is seen.
                        let Running { tag, .. } = *running;
                        self.done.push_back((tag, result));
                    }
                    self.free.push(slot);
                }
            }
        }
    }

    /// Moves waiting calls into the ring and has the kernel see them. False: it could not take them now.
    pub fn kick(&mut self) -> bool {
        while self.issued < ENTRIES as usize
            && let Some((slot, call)) = self.backlog.pop_front()
        {
            let Some(running) = &self.jobs[slot] else { continue };
            let entry = entry(running.image.fd(), call).user_data(slot as u64);
            // SAFETY: the descriptor is the image's, which the job keeps open. The runs are the job's, which stays in its
            // slot until the call's completion was seen; drop waits for that.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_front((slot, call));
                break;
            }
            self.issued += 1;
        }
        self.ring.submission().is_empty() || self.ring.submit().is_ok()
    }

    /// Looks at what the kernel completed.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            self.issued -= 1;
            let slot = entry.user_data() as usize;
            let result = usize::try_from(entry.result()).map_err(|_| -entry.result());
            if let Some(running) = self.jobs.get_mut(slot).and_then(Option::as_mut) {
                let Running { job, image, .. } = &mut **running;
                job.result(image, result);
                self.step(slot);
            }
        }
    }

    pub fn completed(&mut self) -> Option<Ended<T>> {
        if self.done.is_empty() {
            self.reap();
            self.kick();
        }
        self.done.pop_front()
    }

    /// Waits for one more end, unless nothing is on its way.
    pub fn wait(&mut self) {
        self.kick();
        while self.issued > 0 && self.done.is_empty() {
            // An interrupted or refused wait is tried again: memory is in the kernel's hands until it is over.
            if self.ring.submit_and_wait(1).is_err() {
                std::thread::yield_now();
            }
            self.reap();
            self.kick();
        }
    }
}

fn entry(fd: RawFd, call: Call) -> squeue::Entry {
    let fd = Fd(fd);
    match call {
        Call::Read { runs, count, offset } => opcode::Readv::new(fd, runs, count).offset(offset).build(),
        Call::Write { runs, count, offset } => opcode::Writev::new(fd, runs, count).offset(offset).build(),
        Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build(),
        // Never comes here: `step` performs it.
        Call::Discard { .. } => opcode::Nop::new().build(),
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        while self.issued > 0 || !self.backlog.is_empty() {
            self.done.clear();
            self.wait();
        }
    }
}
