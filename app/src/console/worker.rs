//! What takes time, off the window's thread: commands to the machine, typing, files and file dialogs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use vmm_core::backend::display::Mode;
use vmm_core::vm::VmCommand;

use super::{Command, Past, Point, Save, Saving, TypeText, Waker, screenshot};

/// Between two words on how far something is.
const PACE: Duration = Duration::from_millis(100);

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// The machine did it.
    Done(VmCommand),
    /// The machine refused: why.
    Refused(VmCommand, String),
    /// How much of what takes time is done of how much.
    Progress(u64, u64),
    /// The points of the machine's timeline, or why they can't be read.
    Past(Result<Vec<Point>, String>),
    /// What took time is over: what is told of it, or why it was not done, and whether it was given up.
    Saved(Saving, Result<String, String>, bool),
    /// A text could not be typed: why.
    NotTyped(String),
    /// A screenshot's file, or why there is none.
    Screenshot(Result<PathBuf, String>),
    /// A person chose a file for a drive, or thought better of it.
    Picked(usize, Option<PathBuf>),
}

/// The threads that work for one window.
pub struct Worker {
    commands: Sender<VmCommand>,
    texts: Sender<String>,
    save: Option<Arc<Save>>,
    past: Option<Arc<Past>>,
    /// What is saved now is given up.
    cancel: Arc<AtomicBool>,
    outcomes: Sender<Outcome>,
    waker: Waker,
}

impl Worker {
    /// Starts the threads. Outcomes come out of the returned end, with a wake.
    ///
    /// # Errors
    /// The host has no more threads.
    pub fn start(
        command: Command,
        type_text: TypeText,
        save: Option<Save>,
        past: Option<Past>,
        waker: Waker,
    ) -> std::io::Result<(Worker, Receiver<Outcome>)> {
        let (outcomes, out) = mpsc::channel();
        let (commands, jobs) = mpsc::channel::<VmCommand>();
        spawn("console-commands", &outcomes, &waker, move |report| {
            for job in jobs {
                report(match command(job.clone()) {
                    Ok(()) => Outcome::Done(job),
                    Err(why) => Outcome::Refused(job, why),
                });
            }
        })?;
        let (texts, jobs) = mpsc::channel::<String>();
        spawn("console-typing", &outcomes, &waker, move |report| {
            for text in jobs {
                if let Err(why) = type_text(&text) {
                    report(Outcome::NotTyped(why));
                }
            }
        })?;
        let (save, past, cancel) = (save.map(Arc::new), past.map(Arc::new), Arc::default());
        Ok((Worker { commands, texts, save, past, cancel, outcomes, waker }, out))
    }

    /// Asks the machine for something.
    pub fn command(&self, command: VmCommand) {
        // The thread ends only with the worker, or with a panic in the session's own code.
        let _ = self.commands.send(command);
    }

    /// Begins something that takes time. The caller begins one after the other.
    pub fn save(&self, what: Saving) {
        let Some(save) = self.save.clone() else { return };
        let cancel = Arc::clone(&self.cancel);
        cancel.store(false, Ordering::Relaxed);
        let wanted = what.clone();
        let work = move |report: &dyn Fn(Outcome)| {
            let mut next = Instant::now();
            let saved = save(&what, &mut |done, total| {
                if Instant::now() >= next {
                    next = Instant::now() + PACE;
                    report(Outcome::Progress(done, total));
                }
                !cancel.load(Ordering::Relaxed)
            });
            report(Outcome::Saved(what, saved, cancel.load(Ordering::Relaxed)));
        };
        if let Err(e) = spawn("console-save", &self.outcomes, &self.waker, work) {
            let why = format!("could not start a thread for it: {e}");
            let _ = self.outcomes.send(Outcome::Saved(wanted, Err(why), false));
        }
    }

    /// Reads the machine's timeline.
    pub fn look_back(&self) {
        let Some(past) = self.past.clone() else { return };
        let work = move |report: &dyn Fn(Outcome)| report(Outcome::Past(past()));
        if let Err(e) = spawn("console-past", &self.outcomes, &self.waker, work) {
            let _ = self.outcomes.send(Outcome::Past(Err(format!("could not start a thread for it: {e}"))));
        }
    }

    /// Gives up what takes time.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Types a text.
    pub fn type_text(&self, text: String) {
        let _ = self.texts.send(text);
    }

    /// Saves a screenshot.
    pub fn screenshot(&self, folder: Option<PathBuf>, name: String, mode: Mode, pixels: Vec<u8>) {
        let work = move |report: &dyn Fn(Outcome)| {
            let folder = folder.unwrap_or_else(screenshot::pictures);
            let time = screenshot::local_time();
            report(Outcome::Screenshot(screenshot::save(&folder, &name, &time, mode, &pixels)));
        };
        if let Err(e) = spawn("console-screenshot", &self.outcomes, &self.waker, work) {
            let why = format!("could not start a thread for the screenshot: {e}");
            let _ = self.outcomes.send(Outcome::Screenshot(Err(why)));
        }
    }

    /// Lets the person pick a disc image with the desktop's own dialog.
    pub fn pick_disc(&self, drive: usize) {
        let work = move |report: &dyn Fn(Outcome)| {
            let dialog = rfd::FileDialog::new().set_title("Insert disc image");
            let file = dialog.add_filter("Disc images", &["iso", "ISO", "img"]).add_filter("All files", &["*"]);
            report(Outcome::Picked(drive, file.pick_file()));
        };
        // Without a thread there is no dialog, and the path can still be typed.
        let _ = spawn("console-pick", &self.outcomes, &self.waker, work);
    }
}

fn spawn(
    name: &str,
    outcomes: &Sender<Outcome>,
    waker: &Waker,
    work: impl FnOnce(&dyn Fn(Outcome)) + Send + 'static,
) -> std::io::Result<()> {
    let (outcomes, waker) = (outcomes.clone(), waker.clone());
    let report = move |outcome| {
        // A closed channel means that the window is gone, and with it whoever wanted to know.
        let _ = outcomes.send(outcome);
        waker.wake();
    };
    thread::Builder::new().name(name.into()).spawn(move || work(&report))?;
    Ok(())
}
