//! Runs a disk's requests on an io_uring of its own. Completions signal an eventfd.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Completion;
use super::image::Image;
use super::job::{Call, Job, Step, perform};

/// Calls in the kernel at once; more wait here. A ring this size takes 12 KiB.
const ENTRIES: u32 = 128;

pub(super) struct Uring {
    ring: IoUring,
    event: EventFd,
    image: Arc<Image>,
    /// By slot, which is what the kernel knows a call by.
    jobs: Vec<Option<Box<Job>>>,
    free: Vec<usize>,
    /// Calls for which the ring has no room yet.
    backlog: VecDeque<(usize, Call)>,
    /// Calls in the ring.
    issued: usize,
    done: VecDeque<Completion>,
}

impl Uring {
    /// Fails where the host does not allow it.
    pub fn new(image: Arc<Image>) -> io::Result<Uring> {
        let ring = IoUring::new(ENTRIES)?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let (jobs, free, backlog, done) = (Vec::new(), Vec::new(), VecDeque::new(), VecDeque::new());
        Ok(Uring { ring, event, image, jobs, free, backlog, issued: 0, done })
    }

    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub fn start(&mut self, job: Job) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[slot] = Some(Box::new(job));
        self.step(slot);
    }

    /// Takes a job to its next call, or its end.
    fn step(&mut self, slot: usize) {
        while let Some(job) = &mut self.jobs[slot] {
            match job.next(&self.image) {
                Step::Call(call @ Call::Discard { .. }) => job.result(&self.image, perform(call, &self.image)),
                Step::Call(call) => return self.backlog.push_back((slot, call)),
                Step::Done(completion) => {
                    self.jobs[slot] = None;
                    self.free.push(slot);
                    self.done.push_back(completion);
                    let _ = self.event.write(1);
                }
            }
        }
    }

    /// Moves waiting calls into the ring and has the kernel see them.
    pub fn kick(&mut self) {
        while self.issued < ENTRIES as usize
            && let Some((slot, call)) = self.backlog.pop_front()
        {
            let entry = self.entry(call).user_data(slot as u64);
            // SAFETY: the descriptor is the image's, which self keeps open. The runs are the job's, which stays in its
            // slot until the call's completion was seen; drop waits for that.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_front((slot, call));
                break;
            }
            self.issued += 1;
        }
        if !self.ring.submission().is_empty() && self.ring.submit().is_err() {
            // The kernel is short of memory for now: come here again.
            let _ = self.event.write(1);
        }
    }

    fn entry(&self, call: Call) -> squeue::Entry {
        let fd = Fd(self.image.fd());
        match call {
            Call::Read { runs, count, offset } => opcode::Readv::new(fd, runs, count).offset(offset).build(),
            Call::Write { runs, count, offset } => opcode::Writev::new(fd, runs, count).offset(offset).build(),
            Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Call::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build(),
            // Never comes here: `step` performs it.
            Call::Discard { .. } => opcode::Nop::new().build(),
        }
    }

    /// Looks at what the kernel completed.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            self.issued -= 1;
            let slot = entry.user_data() as usize;
            let result = usize::try_from(entry.result()).map_err(|_| -entry.result());
            if let Some(job) = self.jobs.get_mut(slot).and_then(Option::as_mut) {
                job.result(&self.image, result);
                self.step(slot);
            }
        }
    }

    pub fn completed(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
            self.kick();
        }
        self.done.pop_front()
    }

    pub fn drain(&mut self) {
        self.kick();
        while self.issued > 0 {
            // An interrupted or refused wait is tried again: memory is in the kernel's hands until it is over.
            if self.ring.submit_and_wait(1).is_err() {
                std::thread::yield_now();
            }
            self.reap();
            self.kick();
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.drain();
    }
}
