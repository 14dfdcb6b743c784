//! What takes time, as the command line and the windows ask for it: of a machine that runs, through the process that runs
//! it; of one that does not, here, with its lock. What loses something of a machine with a timeline keeps a checkpoint there
//! first.
//!
//! `progress` hears how much is done of how much, in the same unit, and says whether to go on.

use std::thread;
use std::time::{Duration, Instant};

use vmm_core::backend::disk::tools::ToolError;

use crate::control::protocol::Request;
use crate::control::{Client, ControlError};
use crate::library::{CloneWish, Library, LibraryError, Machine, Timeline};

/// How long a machine whose plug was pulled may take to let go of its folder.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(120);
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
    /// An image.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Its timeline was to keep what something else would lose, and that was not done either.
    #[error("no checkpoint could be kept on the timeline of {name:?} first")]
    NoCheckpoint {
        /// The machine.
        name: String,
        /// Why there is none.
        #[source]
        source: Box<JobError>,
    },
    /// It still runs, though its plug was pulled.
    #[error("{0:?} was powered off and still has not ended; try again in a moment, or end its process")]
    StillRuns(String),
}

impl JobError {
    /// Somebody gave it up, and it was not done.
    pub fn is_cancelled(&self) -> bool {
        match self {
            JobError::Library(error) => matches!(error, LibraryError::Cancelled),
            JobError::Control { source, .. } => matches!(source, ControlError::Cancelled),
            JobError::Tool(error) => matches!(error, ToolError::Cancelled),
            JobError::NoCheckpoint { source, .. } => source.is_cancelled(),
            JobError::StillRuns(_) => false,
        }
    }

    /// What an error of the process that runs a machine is of this machine.
    pub fn of(machine: &Machine) -> impl Fn(ControlError) -> JobError + use<> {
        let name = machine.name.clone();
        move |source| JobError::Control { name: name.clone(), source }
    }

    /// What an error is of something that `machine` was to keep on its timeline.
    pub(super) fn no_checkpoint<E: Into<JobError>>(machine: &Machine) -> impl Fn(E) -> JobError + use<E> {
        let name = machine.name.clone();
        move |source| JobError::NoCheckpoint { name: name.clone(), source: Box::new(source.into()) }
    }
}

/// Whether a checkpoint is kept on a machine's timeline, where it has one, before something is done that loses what it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum First {
    /// It is, or nothing is done.
    #[default]
    Keep,
    /// It is not.
    Lose,
}

fn ask(machine: &Machine, request: &Request, progress: Progress<'_>) -> Result<(), JobError> {
    let client = Client::connect(&machine.id).map_err(JobError::of(machine))?;
    client.work(request, progress).map_err(JobError::of(machine))
}

/// Asks the process that runs the machine for something; where none does, it is done `here`, with the machine's lock.
fn ask_or_do(
    library: &Library,
    which: &str,
    request: &Request,
    progress: Progress<'_>,
    here: impl FnOnce(&mut Machine, Progress<'_>) -> Result<(), LibraryError>,
) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    if machine.runner()?.is_some() {
        ask(&machine, request, progress)?;
    } else {
        let _lock = machine.lock()?;
        here(&mut machine, progress)?;
    }
    Ok(machine)
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
    let request = Request::TakeSnapshot { name: name.into(), note: note.into() };
    ask_or_do(library, which, &request, progress, |machine, _| machine.take_snapshot(name, note).map(drop))
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
    let saved = library.load(which)?.snapshot(snapshot)?;
    let (name, note) = (name.unwrap_or(&saved.about.name), note.unwrap_or(&saved.about.note));
    let request = Request::DescribeSnapshot { snapshot: saved.id.clone(), name: name.into(), note: note.into() };
    ask_or_do(library, which, &request, &mut |_, _| true, |machine, _| {
        machine.finish_what_was_begun()?;
        machine.describe_snapshot(&saved.id, name, note)
    })
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
    let request = Request::DeleteSnapshot { name: snapshot.into() };
    ask_or_do(library, which, &request, progress, |machine, progress| {
        machine.delete_snapshot_at_rest(snapshot, progress)
    })
}

/// What is to become of the present when a machine goes back to a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// It is kept as a snapshot of this name first.
    pub keep: Option<String>,
    /// A machine that runs is powered off; otherwise it is refused.
    pub power_off: bool,
    /// Whether its timeline keeps it, where it has one and no snapshot is taken.
    pub first: First,
}

/// Goes back to a snapshot; a machine with a timeline keeps the present there, unless that is kept as a snapshot. Its next start goes on from there; where it was off then, the machine is off as it was.
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
    let mut is_kept = present.first == First::Lose;
    if let Some(name) = &present.keep {
        take_snapshot(library, which, name, "", progress)?;
        is_kept = true;
    }
    if present.power_off {
        let machine = library.load(which)?;
        if machine.runner()?.is_some() {
            if !is_kept {
                keep_on_timeline(&machine, progress)?;
                is_kept = true;
            }
            pull_plug(&machine)?;
        }
    }
    let mut machine = library.load(which)?;
    let _lock = machine.lock()?;
    machine.restore_snapshot(&wanted, is_kept)?;
    Ok(machine)
}

/// Has a machine that runs keep what it is now on its timeline, if it has one.
fn keep_on_timeline(machine: &Machine, progress: Progress<'_>) -> Result<(), JobError> {
    if machine.timeline.is_none() {
        return Ok(());
    }
    match ask(machine, &Request::KeepOnTimeline, progress) {
        // It ended by itself meanwhile: nothing is lost any more.
        Err(JobError::Control { source: ControlError::NotRunning, .. }) if machine.holder()?.is_none() => Ok(()),
        kept => kept.map_err(JobError::no_checkpoint(machine)),
    }
}

/// Presses the reset button of a machine that runs.
///
/// # Errors
/// It does not run, it refuses, or no checkpoint could be kept on its timeline first: it runs on.
pub fn reset(library: &Library, which: &str, first: First, progress: Progress<'_>) -> Result<Machine, JobError> {
    let machine = library.load(which)?;
    if first == First::Keep && machine.runner()?.is_some() {
        keep_on_timeline(&machine, progress)?;
    }
    ask(&machine, &Request::Reset, &mut |_, _| true)?;
    Ok(machine)
}

/// Pulls the plug of a machine that runs and waits until its process has ended, or gives up what one was suspended in, which
/// becomes a checkpoint of its timeline.
///
/// # Errors
/// It is off, its process can't be ended, or no checkpoint could be kept on its timeline first: it is what it was.
pub fn power_off(library: &Library, which: &str, first: First, progress: Progress<'_>) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    if machine.holder()?.is_some() {
        if first == First::Keep {
            keep_on_timeline(&machine, progress)?;
        }
        pull_plug(&machine)?;
        return Ok(machine);
    }
    if machine.goes_on_from()?.is_none() {
        return Err(JobError::of(&machine)(ControlError::NotRunning));
    }
    // Nobody may go on with it meanwhile.
    let _lock = machine.lock()?;
    match machine.timeline.filter(|_| first == First::Keep) {
        Some(_) => machine.keep_suspended().map_err(JobError::no_checkpoint(&machine))?,
        None => machine.discard_suspended()?,
    }
    Ok(machine)
}

/// Pulls the plug of a machine that runs and waits until it has let go of its folder. A process that does not answer is ended.
fn pull_plug(machine: &Machine) -> Result<(), JobError> {
    match Client::connect(&machine.id).and_then(|mut client| client.command(&Request::PowerOff)) {
        Ok(()) => {}
        // It ended by itself meanwhile.
        Err(ControlError::NotRunning) if machine.holder()?.is_none() => {}
        Err(_) => machine.end_holder()?,
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
    ask_or_do(library, which, &Request::SetTimeline { timeline }, &mut |_, _| true, |machine, _| {
        machine.timeline = timeline;
        library.save(machine)
    })
}
