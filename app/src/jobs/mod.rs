//! Everything that takes time: what it is, how far it is, how it ended, and how it is given up.
//!
//! [`verbs`] and [`disks`] are the functions that the command line and the windows call; [`Jobs`] runs them, each on a thread of its own,
//! for a window that must not wait.

pub mod disks;
mod log;
pub mod verbs;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, panic, thread};

pub use disks::Disk;
pub use verbs::{First, JobError, Present, Progress};

/// The most jobs that are remembered after their end.
const MAX_ENDED: usize = 50;
/// Between two words on how far a job is.
const PACE: Duration = Duration::from_millis(100);

/// What a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The machine, or the image by its path, that it is done to: one job at a time for each.
    pub machine: String,
    /// What it does, like `Taking the snapshot “one” of Debian`.
    pub what: String,
    /// The folder of logs that keeps a line of it.
    pub logs: Option<PathBuf>,
    /// It can be given up.
    pub can_cancel: bool,
}

/// How a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Running {
        /// How much is done.
        done: u64,
        /// How much there is, in the same unit; 0 while that is not known.
        total: u64,
        /// It is to be given up.
        cancelling: bool,
    },
    /// It is done.
    Done,
    /// It was given up.
    Cancelled,
    /// It failed, and why.
    Failed(String),
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// What it is.
    pub about: About,
    /// How it is.
    pub state: State,
}

impl Job {
    /// It goes on.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// How much of it is done, 0 to 1; `None` while that is not known, or after its end.
    pub fn share(&self) -> Option<f32> {
        match self.state {
            State::Running { done, total, .. } if total > 0 => Some((done as f64 / total as f64).min(1.0) as f32),
            _ => None,
        }
    }
}

/// How a job's work ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is done.
    Done,
    /// It was given up, as it was asked to.
    Cancelled,
    /// It failed, and why: a sentence.
    Failed(String),
}

/// Why a job did not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another is done to the same machine or image.
    #[error("{0} goes on: wait until it is done, or cancel it")]
    Busy(String),
    /// No thread.
    #[error("the host is out of threads; close other programs and try again")]
    Thread(#[source] io::Error),
}

/// The jobs of this process.
#[derive(Clone)]
pub struct Jobs {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Hears how all jobs are whenever one changes.
    tell: Box<dyn Fn(Vec<Job>) + Send + Sync>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    jobs: Vec<Job>,
    cancels: Vec<(u64, Arc<AtomicBool>)>,
}

impl Jobs {
    /// No jobs. `tell` hears how all of them are whenever one changes, a few times a second at most.
    pub fn new(tell: impl Fn(Vec<Job>) + Send + Sync + 'static) -> Jobs {
        Jobs { shared: Arc::new(Shared { inner: Mutex::default(), tell: Box::new(tell) }) }
    }

    /// Begins a job on a thread of its own. Its number.
    ///
    /// # Errors
    /// Another job is done to the same machine, or the host is out of threads.
    pub fn start(
        &self,
        about: About,
        work: impl FnOnce(Progress<'_>) -> End + Send + 'static,
    ) -> Result<u64, StartError> {
        let cancel = Arc::new(AtomicBool::new(false));
        let id = self.shared.add(about.clone(), Arc::clone(&cancel))?;
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name("job".into()).spawn(move || {
            let begun = Instant::now();
            let mut next = begun;
            let mut progress = |done: u64, total: u64| {
                if Instant::now() >= next {
                    next = Instant::now() + PACE;
                    shared.progress(id, done, total);
                }
                !cancel.load(Ordering::Relaxed)
            };
            // One that panics has ended too, and its machine is free for others.
            let work = panic::AssertUnwindSafe(|| work(&mut progress));
            let end = panic::catch_unwind(work)
                .unwrap_or_else(|_| End::Failed("a mistake in this program ended it; please report it".into()));
            if let Some(folder) = &about.logs {
                let how = match &end {
                    End::Done => "done",
                    End::Cancelled => "cancelled",
                    End::Failed(why) => why,
                };
                log::append(folder, &format!("{}: {how} ({:.1} s)", about.what, begun.elapsed().as_secs_f64()));
            }
            shared.end(id, end);
        });
        match spawned {
            Ok(_) => Ok(id),
            Err(error) => {
                self.shared.forget(id);
                Err(StartError::Thread(error))
            }
        }
    }

    /// Asks a job to give up. It ends when it has.
    pub fn cancel(&self, id: u64) {
        self.shared.change(|inner| {
            if let Some((_, cancel)) = inner.cancels.iter().find(|(other, _)| *other == id) {
                cancel.store(true, Ordering::Relaxed);
            }
            if let Some(Job { state: State::Running { cancelling, .. }, .. }) = inner.job(id) {
                *cancelling = true;
            }
        });
    }
}

impl Inner {
    fn job(&mut self, id: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let changed = change(&mut inner);
        // Told under the lock, so that an older word never comes after a newer one.
        (self.tell)(inner.jobs.clone());
        changed
    }

    fn add(&self, about: About, cancel: Arc<AtomicBool>) -> Result<u64, StartError> {
        self.change(|inner| {
            if let Some(job) = inner.jobs.iter().find(|job| job.is_running() && job.about.machine == about.machine) {
                return Err(StartError::Busy(job.about.what.clone()));
            }
            inner.next += 1;
            let id = inner.next;
            let state = State::Running { done: 0, total: 0, cancelling: false };
            inner.jobs.push(Job { id, about, state });
            inner.cancels.push((id, cancel));
            let ended = inner.jobs.iter().filter(|job| !job.is_running()).count();
            let mut excess = ended.saturating_sub(MAX_ENDED);
            inner.jobs.retain(|job| {
                let gone = !job.is_running() && excess > 0;
                excess -= usize::from(gone);
                !gone
            });
            Ok(id)
        })
    }

    fn progress(&self, id: u64, done: u64, total: u64) {
        self.change(|inner| {
            if let Some(Job { state: State::Running { done: was, total: of, .. }, .. }) = inner.job(id) {
                (*was, *of) = (done, total);
            }
        });
    }

    fn end(&self, id: u64, end: End) {
        self.change(|inner| {
            inner.cancels.retain(|(other, _)| *other != id);
            if let Some(job) = inner.job(id) {
                job.state = match end {
                    End::Done => State::Done,
                    End::Cancelled => State::Cancelled,
                    End::Failed(why) => State::Failed(why),
                };
            }
        });
    }

    fn forget(&self, id: u64) {
        self.change(|inner| {
            inner.jobs.retain(|job| job.id != id);
            inner.cancels.retain(|(other, _)| *other != id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn jobs() -> (Jobs, Receiver<Vec<Job>>) {
        let (tell, told) = channel();
        (Jobs::new(move |jobs| tell.send(jobs).unwrap_or_default()), told)
    }

    fn about(machine: &str) -> About {
        About { machine: machine.into(), what: format!("Merging {machine}"), logs: None, can_cancel: true }
    }

    /// Waits until the job has ended; its state.
    fn end(told: &Receiver<Vec<Job>>, id: u64) -> State {
        told.iter().find_map(|jobs| jobs.into_iter().find(|job| job.id == id && !job.is_running())).unwrap().state
    }

    #[test]
    fn a_job_tells_how_far_it_is_and_how_it_ended() {
        let (jobs, told) = jobs();
        let folder = tempfile::tempdir().unwrap();
        let logs = Some(folder.path().join("logs"));
        let work = |progress: Progress<'_>| {
            assert!(progress(1, 4));
            End::Done
        };
        let id = jobs.start(About { logs, ..about("a") }, work).unwrap();
        let share = told.iter().find_map(|jobs| jobs[0].share());
        assert_eq!((share, end(&told, id)), (Some(0.25), State::Done));
        let log = std::fs::read_to_string(folder.path().join("logs/jobs.log")).unwrap();
        assert!(log.contains("Z Merging a: done (") && log.ends_with(" s)\n"), "{log}");
    }

    #[test]
    fn several_go_on_at_once_and_one_of_each_machine() {
        let (jobs, told) = jobs();
        let (go, gone) = channel::<()>();
        let work = move |_: Progress<'_>| {
            // Until its end is asked for.
            let _ = gone.recv();
            End::Done
        };
        let first = jobs.start(about("a"), work).unwrap();
        let second = jobs.start(about("b"), |_| End::Failed("no room".into())).unwrap();
        assert_eq!(end(&told, second), State::Failed("no room".into()));
        let busy = jobs.start(about("a"), |_| End::Done).unwrap_err();
        assert_eq!(busy.to_string(), "Merging a goes on: wait until it is done, or cancel it");
        drop(go);
        assert_eq!(end(&told, first), State::Done);
        jobs.start(about("a"), |_| End::Done).unwrap();
    }

    #[test]
    fn a_job_that_is_cancelled_says_so_before_it_has_ended() {
        let (jobs, told) = jobs();
        let id = jobs
            .start(about("a"), |progress| {
                while progress(1, 2) {
                    thread::yield_now();
                }
                End::Cancelled
            })
            .unwrap();
        jobs.cancel(id);
        let cancelling = |jobs: &Vec<Job>| matches!(jobs[0].state, State::Running { cancelling: true, .. });
        assert!(told.iter().any(|jobs| cancelling(&jobs)));
        assert_eq!(end(&told, id), State::Cancelled);
    }

    #[test]
    fn a_job_that_panics_has_failed_and_leaves_its_machine_to_others() {
        let (jobs, told) = jobs();
        let id = jobs.start(about("a"), |_| panic!("on purpose")).unwrap();
        assert!(matches!(end(&told, id), State::Failed(why) if why.contains("report")));
        jobs.start(about("a"), |_| End::Done).unwrap();
    }

    #[test]
    fn only_the_last_of_those_that_have_ended_are_remembered() {
        let (jobs, told) = jobs();
        for _ in 0..MAX_ENDED + 5 {
            let id = jobs.start(about("a"), |_| End::Done).unwrap();
            end(&told, id);
        }
        assert!(jobs.shared.lock().jobs.len() <= MAX_ENDED + 1);
    }
}
