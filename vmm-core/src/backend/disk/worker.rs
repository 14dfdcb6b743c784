//! Runs a disk's requests one after another on a thread of its own: for hosts that forbid io_uring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Completion;
use super::image::Image;
use super::job::{Job, Step, perform};

#[derive(Default)]
struct Progress {
    in_flight: usize,
    done: VecDeque<Completion>,
}

struct Shared {
    progress: Mutex<Progress>,
    idle: Condvar,
    event: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn new(image: Arc<Image>) -> io::Result<Worker> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { progress: Mutex::default(), idle: Condvar::new(), event });
        let (jobs, inbox) = mpsc::channel::<Job>();
        let own = shared.clone();
        let body = move || {
            for mut job in inbox {
                let completion = loop {
                    match job.next(&image) {
                        Step::Call(call) => job.result(&image, perform(call, &image)),
                        Step::Done(completion) => break completion,
                    }
                };
                // The buffers go before the completion is seen.
                drop(job);
                let mut progress = own.lock();
                progress.done.push_back(completion);
                progress.in_flight -= 1;
                if progress.in_flight == 0 {
                    own.idle.notify_all();
                }
                drop(progress);
                let _ = own.event.write(1);
            }
        };
        let thread = std::thread::Builder::new().name("disk-io".into()).spawn(body)?;
        Ok(Worker { shared, jobs: Some(jobs), thread: Some(thread) })
    }

    pub fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    pub fn start(&mut self, job: Job) {
        self.shared.lock().in_flight += 1;
        if let Some(jobs) = &self.jobs {
            // The thread takes jobs until the sender is dropped.
            let _ = jobs.send(job);
        }
    }

    pub fn completed(&mut self) -> Option<Completion> {
        self.shared.lock().done.pop_front()
    }

    pub fn drain(&mut self) {
        let progress = self.shared.lock();
        drop(self.shared.idle.wait_while(progress, |p| p.in_flight > 0));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
