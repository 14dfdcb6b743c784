//! What takes time, as the command line and the windows ask for it: of a machine that runs, through the process that runs
//! it; of one that does not, here, with its lock.
//!
//! `progress` hears how much is done of how much, in the same unit, and says whether to go on.

use std::thread;
use std::time::{Duration, Instant};

use crate::control::protocol::Request;
use crate::control::{Client, ControlError};
use crate::library::{CloneWish, Library, LibraryError, Machine, Timeline};

/// How long a machine whose plug was pulled may take to let go of its folder.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether it has.
const POWER_OFF_LOOK: Duration = Duration::from_millis(20);

/// Who hears how far work is.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The library.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The process that runs the machine.
    #[error("{name:?}")]
    Control {
        /// The machine.
        name: String,
        /// What it did not do, or why it cannot be asked.
        #[source]
        source: ControlError,
    },
    /// It still runs, though its plug was pulled.
    #[error("{0:?} was powered off and still has not ended; try again in a moment, or end its process")]
    StillRuns(String),
}

impl JobError {
    /// Somebody gave it up, and it was not done.
    pub fn is_cancelled(&self) -> bool {
        let control = matches!(self, JobError::Control { source: ControlError::Cancelled, .. });
        control || matches!(self, JobError::Library(LibraryError::Cancelled))
    }

    /// What an error of the process that runs a machine is of this machine.
    pub fn of(machine: &Machine) -> impl Fn(ControlError) -> JobError + use<> {
        let name = machine.name.clone();
        move |source| JobError::Control { name: name.clone(), source }
    }
}

fn ask(machine: &Machine, request: &Request, progress: Progress<'_>) -> Result<(), JobError> {
    let client = Client::connect(&machine.id).map_err(JobError::of(machine))?;
    client.work(request, progress).map_err(JobError::of(machine))
}

/// Saves a machine that runs, and ends it: its next start goes on from there.
///
/// # Errors
/// It does not run, it refuses, or it was cancelled: it runs on.
pub fn suspend(library: &Library, which: &str, progress: Progress<'_>) -> Result<Machine, JobError> {
    let machine = library.load(which)?;
    ask(&machine, &Request::Suspend, progress)?;
    Ok(machine)
}

/// Takes a snapshot of a machine, which may run.
///
/// # Errors
/// The name is none, a disk can't be part of it, the host has no room, or it was cancelled: there is none then.
pub fn take_snapshot(
    library: &Library,
    which: &str,
    name: &str,
    note: &str,
    progress: Progress<'_>,
) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    if machine.runner()?.is_some() {
        ask(&machine, &Request::TakeSnapshot { name: name.into(), note: note.into() }, progress)?;
    } else {
        let _lock = machine.lock()?;
        machine.take_snapshot(name, note)?;
    }
    Ok(machine)
}

/// Gives a snapshot another name and note; what is `None` stays as it is.
///
/// # Errors
/// There is none of that name, or the new one is none.
pub fn describe_snapshot(
    library: &Library,
    which: &str,
    snapshot: &str,
    name: Option<&str>,
    note: Option<&str>,
) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    let saved = machine.snapshot(snapshot)?;
    let (name, note) = (name.unwrap_or(&saved.about.name), note.unwrap_or(&saved.about.note));
    if machine.runner()?.is_some() {
        let request = Request::DescribeSnapshot { snapshot: saved.id, name: name.into(), note: note.into() };
        let mut client = Client::connect(&machine.id).map_err(JobError::of(&machine))?;
        client.command(&request).map_err(JobError::of(&machine))?;
    } else {
        let _lock = machine.lock()?;
        machine.finish_what_was_begun()?;
        machine.describe_snapshot(&saved.id, name, note)?;
    }
    Ok(machine)
}

/// Deletes a snapshot of a machine, which may run; what came after it stays.
///
/// # Errors
/// There is none of that name, or the host refuses something. Given up, what is left of it is done with the next one.
pub fn delete_snapshot(
    library: &Library,
    which: &str,
    snapshot: &str,
    progress: Progress<'_>,
) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    if machine.runner()?.is_some() {
        ask(&machine, &Request::DeleteSnapshot { name: snapshot.into() }, progress)?;
    } else {
        let _lock = machine.lock()?;
        machine.delete_snapshot_at_rest(snapshot, progress)?;
    }
    Ok(machine)
}

/// What is to become of the present when a machine goes back to a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// It is kept as a snapshot of this name first.
    pub keep: Option<String>,
    /// A machine that runs is powered off; otherwise it is refused.
    pub power_off: bool,
}

/// Goes back to a snapshot. Its next start goes on from there; where it was off then, the machine is off as it was.
///
/// # Errors
/// There is none of that name, the machine runs, or what is to be kept can't be: the machine is what it was then, off perhaps.
pub fn restore_snapshot(
    library: &Library,
    which: &str,
    snapshot: &str,
    present: &Present,
    progress: Progress<'_>,
) -> Result<Machine, JobError> {
    let wanted = library.load(which)?.snapshot(snapshot)?.id;
    if !present.power_off {
        // A machine that can't go back keeps nothing either.
        let machine = library.load(which)?;
        if let Some(holder) = machine.holder()? {
            return Err(machine.held_by(&holder).into());
        }
    }
    if let Some(name) = &present.keep {
        take_snapshot(library, which, name, "", progress)?;
    }
    if present.power_off {
        power_off(&library.load(which)?)?;
    }
    let mut machine = library.load(which)?;
    let _lock = machine.lock()?;
    machine.restore_snapshot(&wanted)?;
    Ok(machine)
}

/// Pulls the plug of a machine that runs and waits until it has let go of its folder.
fn power_off(machine: &Machine) -> Result<(), JobError> {
    if machine.runner()?.is_none() {
        return Ok(());
    }
    match Client::connect(&machine.id).and_then(|mut client| client.command(&Request::PowerOff)) {
        // It ended by itself meanwhile.
        Ok(()) | Err(ControlError::NotRunning) => {}
        Err(error) => return Err(JobError::of(machine)(error)),
    }
    let until = Instant::now() + POWER_OFF_PATIENCE;
    while machine.holder()?.is_some() {
        if Instant::now() > until {
            return Err(JobError::StillRuns(machine.name.clone()));
        }
        thread::sleep(POWER_OFF_LOOK);
    }
    Ok(())
}

/// Makes a machine called `name` that goes on from this moment of one that runs.
///
/// # Errors
/// It does not run, refuses, or the name is none or taken.
pub fn fork(library: &Library, which: &str, name: &str, progress: Progress<'_>) -> Result<Machine, JobError> {
    let machine = library.load(which)?;
    if machine.runner()?.is_none() {
        return Err(JobError::of(&machine)(ControlError::NotRunning));
    }
    ask(&machine, &Request::Fork { name: name.into() }, progress)?;
    Ok(machine)
}

/// Makes a clone of a machine: of what it is now while it does not run, or of a snapshot.
///
/// # Errors
/// It runs, there is no such snapshot, the name is none or taken, the host has no room, or it was cancelled: nothing is made.
pub fn clone(library: &Library, which: &str, wish: &CloneWish, progress: Progress<'_>) -> Result<Machine, JobError> {
    Ok(library.clone_machine(&mut library.load(which)?, wish, progress)?)
}

/// Sets how a machine's timeline is kept, or that it has none.
///
/// # Errors
/// The timeline is none that can be, or the machine's file can't be written.
pub fn set_timeline(library: &Library, which: &str, timeline: Option<Timeline>) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    if machine.runner()?.is_some() {
        let mut client = Client::connect(&machine.id).map_err(JobError::of(&machine))?;
        client.command(&Request::SetTimeline { timeline }).map_err(JobError::of(&machine))?;
    } else {
        let _lock = machine.lock()?;
        machine.timeline = timeline;
        library.save(&machine)?;
    }
    Ok(machine)
}
