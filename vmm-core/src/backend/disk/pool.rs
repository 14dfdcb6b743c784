//! Runs jobs on images beside each other: on an io_uring, or on a thread where the host forbids that. Each job has a
//! tag, by which its owner knows it when it ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::DiskError;
use super::image::Image;
use super::job::{Job, Step, perform, perform_at_once};
#[cfg(test)]
use super::power::Sim;
use super::uring::Uring;
use super::worker::Worker;

/// How jobs are run.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// As the host allows.
    Best,
    /// On a thread.
    Thread,
    /// On a simulated drive whose power may fail.
    #[cfg(test)]
    Sim(super::power::Drive),
}

/// A job on its way.
pub(super) struct Running<T> {
    pub tag: T,
    pub image: Arc<Image>,
    pub job: Job,
}

/// A job's end.
pub(super) type Ended<T> = (T, Result<(), DiskError>);

/// The most that writes in a row are joined to, bytes.
const JOINED: u64 = 256 << 10;

pub(super) struct Pool<T: Send + 'static> {
    engine: Engine<T>,
    event: Arc<EventFd>,
    /// Writes in a row to the page cache, which are done together: one call for many costs less.
    held: Option<Held<T>>,
    done: VecDeque<Ended<T>>,
    /// Jobs that have not ended.
    running: usize,
}

/// Jobs that were joined to one.
struct Held<T> {
    tags: Vec<T>,
    image: Arc<Image>,
    job: Job,
}

enum Engine<T: Send + 'static> {
    Uring(Box<Uring<T>>),
    Worker(Worker<T>),
    #[cfg(test)]
    Sim(Sim<T>),
}

impl<T: Send + 'static> Pool<T> {
    pub fn new(way: Way) -> io::Result<Pool<T>> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let engine = match way {
            Way::Best => match Uring::new(event.as_raw_fd()) {
                Ok(uring) => Engine::Uring(Box::new(uring)),
                Err(_) => Engine::Worker(Worker::new(event.clone())?),
            },
            Way::Thread => Engine::Worker(Worker::new(event.clone())?),
            #[cfg(test)]
            Way::Sim(drive) => Engine::Sim(Sim::new(drive)),
        };
        Ok(Pool { engine, event, held: None, done: VecDeque::new(), running: 0 })
    }

    /// Signalled whenever jobs may have ended, or [`Pool::kick`] has more to do.
    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Signals the event.
    pub fn signal(&self) {
        let _ = self.event.write(1);
    }

    /// Jobs that have not ended.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Takes a job. A read of the page cache is done at once; the rest starts with the next [`Pool::kick`] at the latest.
    pub fn start(&mut self, tag: T, image: &Arc<Image>, mut job: Job) {
        if !matches!(self.engine, Engine::Uring(_)) {
            return self.pass_on(tag, image, job);
        }
        if job.is_plain_write() && !image.is_direct() {
            return self.hold(tag, image, job);
        }
        self.let_go();
        loop {
            match job.next(image) {
                Step::Done(result) => return self.done.push_back((tag, result)),
                Step::Call(call) => match perform_at_once(call, image) {
                    Some(result) => job.result(image, result),
                    None => {
                        // The next step is the same call once more.
                        job.result(image, Err(libc::EAGAIN));
                        return self.pass_on(tag, image, job);
                    }
                },
            }
        }
    }

    /// Joins a write to those before it, or begins with it anew.
    fn hold(&mut self, tag: T, image: &Arc<Image>, job: Job) {
        self.running += 1;
        let job = match &mut self.held {
            Some(held) if Arc::ptr_eq(&held.image, image) => match held.job.join(job, JOINED) {
                None => return held.tags.push(tag),
                Some(job) => job,
            },
            _ => job,
        };
        self.let_go();
        self.held = Some(Held { tags: vec![tag], image: image.clone(), job });
    }

    /// Does the writes that were held.
    fn let_go(&mut self) {
        let Some(Held { tags, image, job }) = self.held.take() else { return };
        self.running -= tags.len();
        let result = job.run(&image);
        self.done.extend(tags.into_iter().map(|tag| (tag, result.as_ref().map_err(DiskError::again).copied())));
    }

    fn pass_on(&mut self, tag: T, image: &Arc<Image>, job: Job) {
        self.running += 1;
        let running = Running { tag, image: image.clone(), job };
        match &mut self.engine {
            Engine::Uring(uring) => uring.start(running),
            Engine::Worker(worker) => worker.start(running),
            #[cfg(test)]
            Engine::Sim(sim) => sim.start(running),
        }
    }

    /// Has the kernel see what was started.
    pub fn kick(&mut self) {
        self.let_go();
        if let Engine::Uring(uring) = &mut self.engine
            && !uring.kick()
        {
            // The kernel is short of memory for now: come here again.
            self.signal();
        }
    }

    /// Whether jobs have ended that nobody has taken yet, as far as can be told without asking the kernel.
    pub fn has_ended(&self) -> bool {
        !self.done.is_empty()
    }

    /// A job that ended, if there is one.
    pub fn completed(&mut self) -> Option<Ended<T>> {
        if let Some(ended) = self.done.pop_front() {
            return Some(ended);
        }
        let ended = match &mut self.engine {
            Engine::Uring(uring) => uring.completed(),
            Engine::Worker(worker) => worker.completed(),
            #[cfg(test)]
            Engine::Sim(sim) => sim.completed(),
        };
        if ended.is_some() {
            self.running -= 1;
        }
        ended
    }

    /// Starts everything and waits until something has ended, unless nothing is on its way.
    pub fn wait(&mut self) {
        self.let_go();
        if !self.done.is_empty() || self.running == 0 {
            return;
        }
        match &mut self.engine {
            Engine::Uring(uring) => uring.wait(),
            Engine::Worker(worker) => worker.wait(),
            #[cfg(test)]
            Engine::Sim(sim) => sim.wait(),
        }
    }
}

impl<T: Send + 'static> Drop for Pool<T> {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Takes a job to its end.
pub(super) fn run_to_end<T>(running: Running<T>) -> Ended<T> {
    let Running { tag, image, mut job } = running;
    let result = loop {
        match job.next(&image) {
            Step::Call(call) => job.result(&image, perform(call, &image)),
            Step::Done(result) => break result,
        }
    };
    // The buffers go before the end is seen.
    drop(job);
    (tag, result)
}
