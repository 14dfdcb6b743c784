//! Runs jobs one after another on a thread of its own: for hosts that forbid io_uring.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::pool::{Ended, Running, run_to_end};

struct Progress<T> {
    in_flight: usize,
    done: VecDeque<Ended<T>>,
}

struct Shared<T> {
    progress: Mutex<Progress<T>>,
    ended: Condvar,
    event: Arc<EventFd>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Worker<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    jobs: Option<Sender<Running<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    pub fn new(event: Arc<EventFd>) -> io::Result<Worker<T>> {
        let progress = Mutex::new(Progress { in_flight: 0, done: VecDeque::new() });
        let shared = Arc::new(Shared { progress, ended: Condvar::new(), event });
        let (jobs, inbox) = mpsc::channel::<Running<T>>();
        let own = shared.clone();
        let body = move || {
            for running in inbox {
                let ended = run_to_end(running);
                let mut progress = own.lock();
                progress.done.push_back(ended);
                progress.in_flight -= 1;
                own.ended.notify_all();
                drop(progress);
                let _ = own.event.write(1);
            }
        };
        let thread = std::thread::Builder::new().name("disk-io".into()).spawn(body)?;
        Ok(Worker { shared, jobs: Some(jobs), thread: Some(thread) })
    }

    pub fn start(&mut self, running: Running<T>) {
        self.shared.lock().in_flight += 1;
        if let Some(jobs) = &self.jobs {
            // The thread takes jobs until the sender is dropped.
            let _ = jobs.send(running);
        }
    }

    pub fn completed(&mut self) -> Option<Ended<T>> {
        self.shared.lock().done.pop_front()
    }

    /// Waits for one more end, unless nothing is on its way.
    pub fn wait(&mut self) {
        let progress = self.shared.lock();
        drop(self.shared.ended.wait_while(progress, |p| p.in_flight > 0 && p.done.is_empty()));
    }
}

impl<T: Send + 'static> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
