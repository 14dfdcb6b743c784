//! What takes time, off the window's thread: commands to the machine, typing, files and file dialogs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use vmm_core::backend::display::Mode;
use vmm_core::vm::VmCommand;

use super::{Command, Suspend, TypeText, Waker, screenshot};

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// The machine did it.
    Done(VmCommand),
    /// The machine refused: why.
    Refused(VmCommand, String),
    /// The machine could not be saved: why.
    NotSuspended(String),
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
    suspend: Option<Arc<Suspend>>,
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
        suspend: Option<Suspend>,
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
        Ok((Worker { commands, texts, suspend: suspend.map(Arc::new), outcomes, waker }, out))
    }

    /// Asks the machine for something.
    pub fn command(&self, command: VmCommand) {
        // The thread ends only with the worker, or with a panic in the session's own code.
        let _ = self.commands.send(command);
    }

    /// Saves the machine and ends it.
    pub fn suspend(&self) {
        let Some(suspend) = self.suspend.clone() else { return };
        let work = move |report: &dyn Fn(Outcome)| {
            if let Err(why) = suspend() {
                report(Outcome::NotSuspended(why));
            }
        };
        if let Err(e) = spawn("console-suspend", &self.outcomes, &self.waker, work) {
            let _ = self.outcomes.send(Outcome::NotSuspended(format!("could not start a thread for it: {e}")));
        }
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
