//! The workers: everything of the manager that may wait. A thread for each concern, so that none waits for another.
//!
//! - `library` reads the machines once a second, and the open log;
//! - one `follow` thread for each running machine asks how it is and takes its picture when it has changed;
//! - each request has a short-lived `request` thread and calls the function that the command line's verb calls; one that
//!   takes time becomes a job of [`crate::jobs`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use egui::ColorImage;
use vmm_core::base::explain;

use super::action::{Power, Purpose, Request, Update, Watch};
use super::disks::{self, Looked};
use super::model::{Check, Failure, Log, Machine, Offer, Picture, State};
use super::picker::Entry;
use super::{Send, settings, snapshots};
use crate::control::{self, Client, ControlError, protocol};
use crate::jobs::{About, End, First, JobError, Jobs, Present, Progress, verbs};
use crate::library::{self, CloneWish, HostLimits, Library, Outcome, Trashed, preflight, size};
use crate::session::{self, Manner};

/// How often the library and the selected machine are looked at.
const POLL: Duration = Duration::from_millis(1000);
/// How often a running machine that is not selected is.
const POLL_OTHERS: Duration = Duration::from_millis(2000);
/// How long a machine may be starting before it counts as one that does not answer.
const START_PATIENCE: Duration = Duration::from_secs(15);
/// The width of the selected machine's picture, pixels.
const PICTURE: u32 = 960;
/// The width of the others'.
const THUMBNAIL: u32 = 192;
/// The most that a picture's pixels take, bytes.
const MAX_PIXELS: usize = 32 << 20;
/// What is read of a log's end, bytes.
const LOG_TAIL: u64 = 64 * 1024;
/// The most log files that are shown.
const MAX_LOGS: usize = 8;
/// The most files of a folder that are listed.
const MAX_ENTRIES: usize = 20_000;

/// Tells the manager's window.
#[derive(Clone)]
pub(super) struct Tell {
    updates: Sender<Update>,
    wake: Arc<dyn Fn() + std::marker::Send + Sync>,
}

impl Tell {
    pub fn say(&self, update: Update) {
        // A window that is gone needs no news.
        if self.updates.send(update).is_ok() {
            (self.wake)();
        }
    }
}

/// What the workers share.
pub(super) struct Shared {
    library: Library,
    pub tell: Tell,
    watch: Mutex<Watch>,
    /// How the running machines are, by id.
    live: Mutex<HashMap<String, Live>>,
    /// Wakes the library's thread.
    kick: Sender<()>,
    jobs: Jobs,
}

/// How a running machine is.
#[derive(Debug, Clone, PartialEq)]
struct Live {
    name: String,
    state: State,
    headless: bool,
    without_saving: bool,
    drives: Option<Vec<Option<PathBuf>>>,
    problem: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the workers. `wake` is called when there is something to receive.
///
/// # Errors
/// There is no library and none can be made, or the host is out of threads.
pub fn start(
    root: Option<PathBuf>,
    wake: impl Fn() + std::marker::Send + Sync + 'static,
) -> anyhow::Result<(Send, Receiver<Update>)> {
    let library = match root {
        Some(root) => Library::open(root)?,
        None => Library::open_default()?,
    };
    let (updates, received) = mpsc::channel();
    let tell = Tell { updates, wake: Arc::new(wake) };
    tell.say(Update::Library(library.root().to_path_buf()));
    if let Some(settings) = settings::load() {
        tell.say(Update::Settings(settings));
    }
    let (kick, kicked) = mpsc::channel();
    let told = tell.clone();
    let jobs = Jobs::new(move |jobs| told.say(Update::Jobs(jobs)));
    let shared = Arc::new(Shared { library, tell, watch: Mutex::default(), live: Mutex::default(), kick, jobs });
    let watcher = Arc::clone(&shared);
    thread::Builder::new().name("library".into()).spawn(move || watch_library(&watcher, &kicked))?;
    let tell = shared.tell.clone();
    thread::Builder::new()
        .name("desktop".into())
        .spawn(move || settings::follow_desktop(|theme| tell.say(Update::Desktop(theme))))?;
    let send = Box::new(move |request| dispatch(&shared, request));
    send(Request::CheckHost { tell: false });
    Ok((send, received))
}

/// Gives a request to a thread of its own.
fn dispatch(shared: &Arc<Shared>, request: Request) {
    if let Request::Watch(watch) = request {
        *lock(&shared.watch) = watch;
        let _ = shared.kick.send(());
        return;
    }
    if let Request::Cancel(id) = request {
        return shared.jobs.cancel(id);
    }
    let worker = Arc::clone(shared);
    let spawned = thread::Builder::new().name("request".into()).spawn(move || {
        perform(&worker, request);
        let _ = worker.kick.send(());
    });
    if let Err(error) = spawned {
        let next = Some("Close other programs and try again.".to_string());
        shared.tell.say(Update::Failed(Failure {
            what: "The host is out of threads".into(),
            cause: error.to_string(),
            next,
            offer: None,
        }));
    }
}

/// An error with all its causes, as sentences.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    sentence(&explain(error))
}

/// With a capital at its start and a full stop at its end.
pub(super) fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    let stop = if text.ends_with(['.', '!', '?', ':']) { "" } else { "." };
    format!("{}{}{stop}", first.to_uppercase(), letters.as_str())
}

pub(super) fn failure(what: String, error: &(dyn std::error::Error + 'static), next: Option<&str>) -> Failure {
    Failure { what, cause: chain(error), next: next.map(Into::into), offer: None }
}

/// A request that takes time.
pub(super) struct Work {
    /// The machine, or the image by its path, that it is done to.
    pub machine: String,
    /// What it does, like `Taking the snapshot “one” of Debian`.
    pub what: String,
    /// What is said when it is done, if anything is.
    pub done: Option<String>,
    /// What is said when it is not.
    pub failed: String,
    /// What is said when it was given up, where that left something.
    pub cancelled: Option<String>,
    pub can_cancel: bool,
    /// What does it all the same, where a timeline could not keep first what it loses.
    pub anyway: Option<Offer>,
    pub work: Box<Do>,
}

/// The work itself.
pub(super) type Do = dyn FnOnce(&Library, Progress<'_>) -> Result<(), WorkError> + std::marker::Send;

/// Begins a job. Its end is told when it comes.
pub(super) fn begin(shared: &Arc<Shared>, work: Work) {
    let Work { machine, what, done, failed, cancelled, can_cancel, anyway, work } = work;
    let logs = shared.library.load(&machine).ok().map(|machine| machine.logs());
    let about = About { machine, what: what.clone(), logs, can_cancel };
    let worker = Arc::clone(shared);
    let headline = failed.clone();
    // What waits for nobody can be done beside another job, too.
    let beside = anyway.clone().filter(|offer| matches!(offer.request, Request::LoseAnyway(..)));
    let started = shared.jobs.start(about, move |progress| {
        let end = match work(&worker.library, progress) {
            Ok(()) => {
                if let Some(done) = done {
                    worker.tell.say(Update::Notice(done));
                }
                End::Done
            }
            Err(WorkError::Job(error)) if error.is_cancelled() => {
                let cancelled = cancelled.unwrap_or_else(|| format!("Cancelled: {}", small(&what)));
                worker.tell.say(Update::Cancelled(cancelled));
                End::Cancelled
            }
            Err(error) => {
                let offer = anyway.filter(|_| matches!(error, WorkError::Job(JobError::NoCheckpoint { .. })));
                let failure = failure(failed, &error, None);
                worker.tell.say(Failure { offer: offer.map(Box::new), ..failure }.into());
                End::Failed(explain(&error))
            }
        };
        let _ = worker.kick.send(());
        end
    });
    if let Err(error) = started {
        let failure = failure(headline, &error, None);
        shared.tell.say(Failure { offer: beside.map(Box::new), ..failure }.into());
    }
}

/// Why a job came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    #[error(transparent)]
    Job(#[from] JobError),
    #[error("all is done, but it was not started")]
    Start(#[source] session::LaunchError),
}

/// With a small letter at its start, for the middle of a sentence.
fn small(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn perform(shared: &Arc<Shared>, request: Request) {
    let library = &shared.library;
    let tell = |update| shared.tell.say(update);
    match request {
        Request::Power(name, Power::Suspend) => begin(
            shared,
            Work {
                what: format!("Suspending {name}"),
                done: None,
                failed: format!("{name} was not suspended"),
                cancelled: None,
                anyway: None,
                can_cancel: true,
                machine: name.clone(),
                work: Box::new(move |library, progress| Ok(verbs::suspend(library, &name, progress).map(drop)?)),
            },
        ),
        Request::TakeSnapshot(name, snapshot, note) => begin(
            shared,
            Work {
                what: format!("Taking the snapshot “{snapshot}” of {name}"),
                done: Some(format!("Took the snapshot “{snapshot}” of {name}")),
                failed: format!("The snapshot “{snapshot}” of {name} was not taken"),
                cancelled: None,
                anyway: None,
                can_cancel: true,
                machine: name.clone(),
                work: Box::new(move |library, progress| {
                    Ok(verbs::take_snapshot(library, &name, &snapshot, &note, progress).map(drop)?)
                }),
            },
        ),
        Request::RestoreSnapshot { machine: name, snapshot, present, start } => {
            let again = Request::RestoreSnapshot {
                machine: name.clone(),
                snapshot: snapshot.clone(),
                present: Present { first: First::Lose, ..present.clone() },
                start,
            };
            let headless = lock(&shared.live).values().any(|live| live.name == name && live.headless);
            begin(
                shared,
                Work {
                    what: format!("Restoring “{}” of {name}", snapshot.name),
                    done: Some(format!("{name} is back at “{}”", snapshot.name)),
                    failed: format!("{name} did not go back to “{}”", snapshot.name),
                    cancelled: None,
                    anyway: Some(Offer { label: "Restore all the same", request: again }),
                    // What loses something has begun by the time that a person would see it.
                    can_cancel: present.keep.is_some(),
                    machine: name.clone(),
                    work: Box::new(move |library, progress| {
                        let machine = verbs::restore_snapshot(library, &name, &snapshot.id, &present, progress)?;
                        if start {
                            session::launch(library, &machine, Manner { headless, ..Manner::default() })
                                .map_err(WorkError::Start)?;
                        }
                        Ok(())
                    }),
                },
            );
        }
        Request::DeleteSnapshot(name, snapshot) => begin(
            shared,
            Work {
                what: format!("Deleting the snapshot “{}” of {name}", snapshot.name),
                done: Some(format!("Deleted the snapshot “{}” of {name}", snapshot.name)),
                failed: format!("The snapshot “{}” of {name} was not deleted", snapshot.name),
                // The snapshot itself is gone by then.
                cancelled: Some(format!(
                    "“{}” of {name} is deleted; its disks are merged the next time",
                    snapshot.name
                )),
                anyway: None,
                can_cancel: true,
                machine: name.clone(),
                work: Box::new(move |library, progress| {
                    Ok(verbs::delete_snapshot(library, &name, &snapshot.id, progress).map(drop)?)
                }),
            },
        ),
        Request::Clone { machine: name, of, new, full, start } => begin(
            shared,
            Work {
                what: of.as_ref().map_or_else(
                    || format!("Cloning {name}"),
                    |point| format!("Making “{new}” of “{}” of {name}", point.name),
                ),
                done: Some(format!("Made {new}")),
                failed: format!("{new} was not made"),
                cancelled: None,
                anyway: None,
                can_cancel: full,
                machine: name.clone(),
                work: Box::new(move |library, progress| {
                    let wish = CloneWish { of: of.map(|point| point.id), name: new, full };
                    let made = verbs::clone(library, &name, &wish, progress)?;
                    if start {
                        session::launch(library, &made, session::Manner::default()).map_err(WorkError::Start)?;
                    }
                    Ok(())
                }),
            },
        ),
        Request::SetTimeline(name, timeline) => {
            if let Err(error) = verbs::set_timeline(library, &name, timeline) {
                tell(failure(format!("The timeline of {name} was not changed"), &error, None).into());
            }
        }
        Request::Fork(name, fork) => begin(
            shared,
            Work {
                what: format!("Forking {name}"),
                done: Some(format!("{fork} goes on from this moment of {name}")),
                failed: format!("{name} was not forked"),
                cancelled: None,
                anyway: None,
                can_cancel: false,
                machine: name.clone(),
                work: Box::new(move |library, progress| Ok(verbs::fork(library, &name, &fork, progress).map(drop)?)),
            },
        ),
        Request::DescribeSnapshot(name, snapshot, new, note) => {
            if let Err(error) = verbs::describe_snapshot(library, &name, &snapshot.id, Some(&new), Some(&note)) {
                let what = format!("The snapshot “{}” of {name} was not renamed", snapshot.name);
                tell(failure(what, &error, None).into());
            }
        }
        Request::Power(name, verb @ (Power::Off | Power::Reset)) if has_timeline(library, &name) => {
            let (doing, label) = match verb {
                Power::Reset => ("Resetting", "Reset it all the same"),
                _ => ("Powering off", "Power off all the same"),
            };
            begin(
                shared,
                Work {
                    what: format!("{doing} {name}"),
                    done: None,
                    failed: not_lost(&name, verb),
                    cancelled: None,
                    anyway: Some(Offer { label, request: Request::LoseAnyway(name.clone(), verb) }),
                    can_cancel: true,
                    machine: name.clone(),
                    work: Box::new(move |library, progress| Ok(lose(library, &name, verb, First::Keep, progress)?)),
                },
            );
        }
        Request::LoseAnyway(name, verb) => {
            if let Err(error) = lose(library, &name, verb, First::Lose, &mut |_, _| true) {
                tell(failure(not_lost(&name, verb), &error, None).into());
            }
        }
        Request::LookAtImage(path) => {
            let facts = disks::look_at(&path);
            tell(Update::Image(path, facts));
        }
        Request::Disk(disk, work) => disks::perform(shared, disk, work),
        Request::Convert(from, to, format) => disks::convert(shared, from, to, format),
        Request::SwitchDisk(machine, disk, format) => disks::switch(shared, machine, disk, format),
        Request::AddDisk(machine, size) => disks::add(shared, machine, size),
        Request::Power(name, verb) => {
            if let Err(failure) = power(library, &name, verb) {
                tell(failure.into());
            } else if verb == Power::ShutDown {
                tell(Update::Notice(format!("{name} was asked to shut down")));
            }
        }
        Request::ShowConsole(name) => {
            let shown = ask(library, &name, &protocol::Request::Raise);
            if let Err(error) = shown {
                tell(failure(format!("The window of {name} can't be shown"), &error, None).into());
            }
        }
        Request::Create { new, start } => match library.create(&new) {
            Ok(machine) => {
                let _ = shared.kick.send(());
                tell(Update::Created(machine.name.clone()));
                if start && let Err(failure) = power(library, &machine.name, Power::Start) {
                    tell(failure.into());
                }
            }
            Err(error) => {
                tell(Update::NotCreated(failure(format!("{} could not be created", new.name), &error, None)));
            }
        },
        Request::Demo => {
            if let Err(error) = session::launch_demo() {
                tell(failure("The demo guest did not start".into(), &error, None).into());
            }
        }
        Request::Save(name, config, before) => {
            let saved = library.load(&name).and_then(|mut machine| {
                let _lock = machine.lock()?;
                if machine.config != *before {
                    // Its disks may have other images: those of before are a snapshot's now.
                    return Err(library::LibraryError::ChangedMeanwhile { name: name.clone() });
                }
                machine.config = *config;
                library.save(&machine)
            });
            match saved {
                Ok(()) => tell(Update::Saved(name)),
                Err(error) => tell(failure(format!("The settings of {name} were not saved"), &error, None).into()),
            }
        }
        Request::ChangeMedium(name, drive, path) => {
            let changed = machine_id(library, &name)
                .and_then(|id| Client::connect(&id)?.change_medium(drive, path.as_deref()).map_err(Into::into));
            if let Err(error) = changed {
                tell(failure(format!("The CD of {name} was not changed"), &error, None).into());
            }
        }
        Request::Rename(name, new) => match library.rename(&name, &new) {
            Ok(machine) => {
                let _ = shared.kick.send(());
                tell(Update::Renamed(name, machine.name));
            }
            Err(error) => tell(failure(format!("{name} was not renamed"), &error, None).into()),
        },
        Request::ResetVariables(name) => match library.reset_variables(&name) {
            Ok(_) => tell(Update::Notice(format!("The UEFI variables of {name} are reset"))),
            Err(error) => {
                tell(failure(format!("The UEFI variables of {name} were not reset"), &error, None).into());
            }
        },
        Request::Delete(name) => match delete(library, &name) {
            Ok((trashed, what)) => tell(Update::Deleted(trashed, what)),
            Err(error) => tell(failure(format!("{name} was not moved to the trash"), &error, None).into()),
        },
        Request::Restore(trashed) => {
            if let Err(error) = library.restore(&trashed) {
                let next = Some("It is still in the trash.");
                tell(failure(format!("{} was not brought back", trashed.name), &error, next).into());
            }
        }
        Request::Inspect(path) => {
            let found = library::detect(&path).map(|medium| {
                let new = medium.suggest(&HostLimits::read(library.root()));
                (medium, new)
            });
            let found = found.map_err(|error| {
                let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
                failure(format!("Nothing can be made of {name}"), &error, None)
            });
            tell(Update::Inspected(path, found));
        }
        Request::List(folder) => {
            let listing = list(&folder).map_err(|error| sentence(&error.to_string()));
            tell(Update::Listed(folder, listing));
        }
        Request::AskDesktop(purpose) => ask_desktop(&shared.tell, purpose),
        Request::CheckHost { tell: say } => {
            let checks = preflight(library.root());
            let good = checks.iter().all(|check| matches!(check.outcome, Outcome::Good(_)));
            let failed = checks.into_iter().filter_map(|check| {
                let (cause, fatal) = match check.outcome {
                    Outcome::Good(_) => return None,
                    Outcome::Warning(cause) => (cause, false),
                    Outcome::Failed(cause) => (cause, true),
                };
                let (what, command) = (check.what.to_string(), cause.command);
                Some(Check { what, cause: cause.cause, remedy: cause.remedy, command, fatal })
            });
            tell(Update::Host(HostLimits::read(library.root()), failed.collect()));
            if say && good {
                tell(Update::Notice("This host has all that virtual machines need".into()));
            }
        }
        Request::Keep(settings) => {
            if let Err(error) = settings::keep(&settings) {
                tell(failure("The settings of the manager were not kept".into(), &error, None).into());
            }
        }
        // Never come here: they need no thread.
        Request::Watch(_) | Request::Cancel(_) => {}
    }
}

/// Why a machine did not do what it was asked: it is not there, or it did not answer or refused.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Library(#[from] library::LibraryError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

fn machine_id(library: &Library, name: &str) -> Result<String, AskError> {
    Ok(library.load(name)?.id)
}

fn ask(library: &Library, name: &str, request: &protocol::Request) -> Result<(), AskError> {
    Ok(Client::connect(&machine_id(library, name)?)?.command(request)?)
}

fn power(library: &Library, name: &str, verb: Power) -> Result<(), Failure> {
    let (what, request) = match verb {
        Power::Start | Power::StartUnsaved => {
            let what = format!("{name} did not start");
            let next = "The machine's Log tab tells what its monitor wrote down.";
            let machine = library.load(name).map_err(|error| failure(what.clone(), &error, None))?;
            let manner = Manner { without_saving: verb == Power::StartUnsaved, ..Manner::default() };
            return match session::launch(library, &machine, manner) {
                Ok(_) => Ok(()),
                Err(error) => Err(failure(what, &error, Some(next))),
            };
        }
        Power::Resume if !is_held(library, name) => return power(library, name, Power::Start),
        Power::Off | Power::Reset => {
            let lost = lose(library, name, verb, First::Keep, &mut |_, _| true);
            return lost.map_err(|error| failure(not_lost(name, verb), &error, None));
        }
        // A job, see `perform`.
        Power::Suspend => ("was not suspended", protocol::Request::Suspend),
        Power::ShutDown => ("was not asked to shut down", protocol::Request::ShutDown),
        Power::Pause => ("was not paused", protocol::Request::Pause),
        Power::Resume => ("was not resumed", protocol::Request::Resume),
    };
    ask(library, name, &request).map_err(|error| failure(format!("{name} {what}"), &error, None))
}

/// Pulls a machine's plug, or presses its reset button.
fn lose(library: &Library, name: &str, verb: Power, first: First, progress: Progress<'_>) -> Result<(), JobError> {
    match verb {
        Power::Reset => verbs::reset(library, name, first, progress),
        _ => verbs::power_off(library, name, first, progress),
    }
    .map(drop)
}

/// What is said where that was not done.
fn not_lost(name: &str, verb: Power) -> String {
    format!("{name} {}", if verb == Power::Reset { "was not reset" } else { "was not powered off" })
}

fn has_timeline(library: &Library, name: &str) -> bool {
    library.load(name).is_ok_and(|machine| machine.timeline.is_some())
}

/// Moves a machine to the trash; the answer says what it held.
fn delete(library: &Library, name: &str) -> Result<(Trashed, String), library::LibraryError> {
    let machine = library.load(name)?;
    let disks = machine.own_disks();
    let bytes: u64 = disks.iter().map(|(_, bytes)| bytes).sum();
    let what = match disks.len() {
        0 => String::new(),
        1 if bytes == 0 => ", with its empty disk".into(),
        1 => format!(", with its disk of {}", size::human(bytes)),
        count => format!(", with its {count} disks of {}", size::human(bytes)),
    };
    library.trash(name).map(|trashed| (trashed, what))
}

fn list(folder: &Path) -> std::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for item in std::fs::read_dir(folder)?.take(MAX_ENTRIES).flatten() {
        // A link counts as what it leads to; one that leads nowhere is left out.
        let Ok(meta) = std::fs::metadata(item.path()) else { continue };
        let size = (!meta.is_dir()).then_some(meta.len());
        entries.push(Entry { name: item.file_name().to_string_lossy().into_owned(), size });
    }
    entries.sort_by_cached_key(|entry| (!entry.is_folder(), entry.name.to_lowercase()));
    Ok(entries)
}

/// Lets the desktop's own dialog choose a file, where there is one.
fn ask_desktop(tell: &Tell, purpose: Purpose) {
    if !settings::desktop_has_file_dialog() {
        return tell.say(Update::NoDialog(purpose));
    }
    let mut dialog = rfd::FileDialog::new().set_title(purpose.title());
    dialog = match purpose {
        Purpose::Medium(_) => {
            dialog.add_filter("CD and DVD images", &["iso", "ISO", "img"]).add_filter("All files", &["*"])
        }
        _ => dialog,
    };
    let path = dialog.pick_file();
    tell.say(Update::Chosen(purpose, path));
}

/// The library's thread.
fn watch_library(shared: &Arc<Shared>, kicked: &Receiver<()>) {
    let mut followers: HashMap<String, Sender<()>> = HashMap::new();
    let mut last: Option<Vec<Machine>> = None;
    let mut failed: Option<Failure> = None;
    let mut last_log = None;
    let mut last_snapshots = None;
    let mut looked = Looked::default();
    // The snapshots whose pictures the window has.
    let mut pictured: HashSet<String> = HashSet::new();
    loop {
        match shared.library.list() {
            Ok(entries) => {
                failed = None;
                let machines: Vec<Machine> =
                    entries.into_iter().map(|entry| look_at(shared, entry, &mut followers, &mut looked)).collect();
                looked.keep(machines.iter().flat_map(|machine| &machine.disks).map(|disk| &disk.path));
                if last.as_ref() != Some(&machines) {
                    shared.tell.say(Update::Machines(Ok(machines.clone())));
                    last = Some(machines);
                }
            }
            Err(error) => {
                let next = Some("Check that the folder is there and yours; ORANGERY_LIBRARY names another one.");
                let failure = failure("The library can't be read".into(), &error, next);
                if failed.as_ref() != Some(&failure) {
                    last = None;
                    failed = Some(failure.clone());
                    shared.tell.say(Update::Machines(Err(failure)));
                }
            }
        }
        let watch = lock(&shared.watch).clone();
        let machine = last.iter().flatten().find(|machine| watch.log && watch.selected.as_ref() == Some(&machine.name));
        if let Some(machine) = machine {
            let log = Log { name: machine.name.clone(), files: read_logs(&machine.folder.join("logs")) };
            if last_log.as_ref() != Some(&log) {
                shared.tell.say(Update::Log(log.clone()));
                last_log = Some(log);
            }
        }
        let watched = watch.selected.filter(|_| watch.snapshots);
        let machine = last.iter().flatten().find(|machine| watched.as_ref() == Some(&machine.name));
        if let Some(kept) = machine.and_then(|machine| shared.library.load(&machine.name).ok()) {
            let snapshots = snapshots::read(&kept);
            pictured.retain(|id| snapshots.get(id).is_some());
            let new: Vec<String> =
                snapshots.points().map(|one| one.id.clone()).filter(|id| !pictured.contains(id)).collect();
            if last_snapshots.as_ref() != Some(&snapshots) {
                shared.tell.say(Update::Snapshots(snapshots.clone()));
                last_snapshots = Some(snapshots);
            }
            for id in new {
                if let Some(image) = snapshots::picture(&kept, &id) {
                    shared.tell.say(Update::SnapshotPicture(id.clone(), image));
                }
                pictured.insert(id);
            }
        }
        match kicked.recv_timeout(POLL) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // Several kicks are one.
        while kicked.try_recv().is_ok() {}
    }
}

/// A machine as it is now; starts and ends the thread that follows it.
fn look_at(
    shared: &Arc<Shared>,
    entry: library::Entry,
    followers: &mut HashMap<String, Sender<()>>,
    looked: &mut Looked,
) -> Machine {
    let name = entry.name();
    let kept = match entry.machine {
        Ok(kept) => kept,
        Err(error) => {
            return Machine {
                name,
                folder: entry.folder,
                state: State::Broken,
                config: Err(chain(&error)),
                disks: Vec::new(),
                headless: false,
                without_saving: false,
                drives: None,
                problem: None,
                has_timeline: false,
            };
        }
    };
    // A lock that can't be read is treated as nobody's: a start will tell.
    let held = kept.runner().ok().flatten().is_some();
    if held && !followers.contains_key(&kept.id) {
        let (stop, stopped) = mpsc::channel();
        let (shared, id, name) = (Arc::clone(shared), kept.id.clone(), name.clone());
        let spawned = thread::Builder::new().name("follow".into()).spawn(move || follow(&shared, &id, &name, &stopped));
        if spawned.is_ok() {
            followers.insert(kept.id.clone(), stop);
        }
    }
    if !held {
        followers.remove(&kept.id);
        lock(&shared.live).remove(&kept.id);
    }
    let live = lock(&shared.live).get(&kept.id).cloned();
    let live = live.unwrap_or_else(|| Live {
        name: name.clone(),
        state: if held { State::Starting } else { at_rest(&kept) },
        headless: false,
        without_saving: false,
        drives: None,
        problem: None,
    });
    let config = kept.resolved();
    let disks = config.disks.iter().map(|disk| looked.look(&disk.path)).collect();
    Machine {
        name,
        folder: kept.folder().to_path_buf(),
        state: live.state,
        config: Ok(kept.config),
        disks,
        headless: live.headless,
        without_saving: live.without_saving,
        drives: live.drives,
        problem: live.problem,
        has_timeline: kept.timeline.is_some(),
    }
}

/// Whether a process runs the machine.
fn is_held(library: &Library, name: &str) -> bool {
    library.load(name).and_then(|machine| machine.runner()).ok().flatten().is_some()
}

/// What a machine is that does not run.
fn at_rest(machine: &library::Machine) -> State {
    match machine.power_at_rest() {
        control::Power::Suspended => State::Suspended,
        _ => State::Stopped,
    }
}

/// Follows a running machine until nobody holds it any more.
fn follow(shared: &Shared, id: &str, name: &str, stopped: &Receiver<()>) {
    let begun = Instant::now();
    let mut client = None;
    let mut pictured = None;
    loop {
        let selected = lock(&shared.watch).selected.as_deref() == Some(name);
        let width = if selected { PICTURE } else { THUMBNAIL };
        let (live, seen) = match see(&mut client, id) {
            Ok(state) => {
                let seen = state.screen.is_some().then_some((state.frames, width));
                (Live::of(name, state), seen)
            }
            Err(error) => {
                client = None;
                let young = begun.elapsed() < START_PATIENCE && matches!(error, ControlError::NotRunning);
                let state = if young { State::Starting } else { State::Unresponsive };
                let problem = (!young).then(|| chain(&error));
                (
                    Live {
                        name: name.to_string(),
                        state,
                        headless: false,
                        without_saving: false,
                        drives: None,
                        problem,
                    },
                    None,
                )
            }
        };
        if live.state == State::Stopped {
            // It says so itself; its lock goes in a moment.
            client = None;
        }
        if lock(&shared.live).insert(id.to_string(), live.clone()).as_ref() != Some(&live) {
            let _ = shared.kick.send(());
        }
        if seen != pictured {
            let image = seen.and(client.as_mut()).and_then(|client| picture(client, width));
            pictured = seen;
            shared.tell.say(Update::Picture(Picture { name: name.to_string(), image }));
        }
        match stopped.recv_timeout(if selected { POLL } else { POLL_OTHERS }) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

fn see(client: &mut Option<Client>, id: &str) -> Result<protocol::State, ControlError> {
    match client {
        Some(client) => client.state(),
        None => client.insert(Client::connect(id)?).state(),
    }
}

impl Live {
    fn of(name: &str, state: protocol::State) -> Live {
        Live {
            name: name.to_string(),
            state: match state.power {
                control::Power::Starting => State::Starting,
                control::Power::Running => State::Running,
                control::Power::Paused => State::Paused,
                control::Power::Stopped | control::Power::Suspended => State::Stopped,
            },
            headless: !state.window,
            without_saving: state.without_saving,
            drives: Some(state.drives),
            problem: state.problem,
        }
    }
}

/// The machine's screen, reduced; `None` when there is none or it makes no sense.
fn picture(client: &mut Client, width: u32) -> Option<ColorImage> {
    decode(&client.screenshot(Some(width)).ok()?.png)
}

/// The picture in a PNG file; `None` when it makes no sense or is larger than any of ours.
pub(super) fn decode(png: &[u8]) -> Option<ColorImage> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(png));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().ok()?;
    let size = reader.output_buffer_size().filter(|&size| size <= MAX_PIXELS)?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).ok()?;
    pixels.truncate(info.buffer_size());
    let size = [usize::try_from(info.width).ok()?, usize::try_from(info.height).ok()?];
    match info.color_type {
        png::ColorType::Rgb => Some(ColorImage::from_rgb(size, &pixels)),
        png::ColorType::Rgba => Some(ColorImage::from_rgba_unmultiplied(size, &pixels)),
        png::ColorType::Grayscale => Some(ColorImage::from_gray(size, &pixels)),
        _ => None,
    }
}

/// The ends of the log files in a folder.
fn read_logs(folder: &Path) -> BTreeMap<String, String> {
    let Ok(items) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let mut names: Vec<PathBuf> =
        items.flatten().map(|item| item.path()).filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    names.sort();
    let read = names.into_iter().take(MAX_LOGS).filter_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some((name, tail(&path).unwrap_or_else(|error| sentence(&format!("it can't be read: {error}")))))
    });
    read.collect()
}

/// The last lines of a file, as text that is safe to show.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LOG_TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    let text = plain_text(&String::from_utf8_lossy(&bytes));
    // What is left of a line's end is no line.
    let text = if start > 0 { text.split_once('\n').map_or(text.as_str(), |(_, rest)| rest).to_string() } else { text };
    Ok(text.trim_end().to_string())
}

/// Without the terminal's control sequences (ECMA-48 §5.4: ESC, `[`, parameters, a final byte) and other control
/// characters that a log has and nobody reads.
fn plain_text(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        match c {
            '\u{1b}' => {
                if letters.next_if_eq(&'[').is_some() {
                    while letters.next_if(|c| !('\u{40}'..='\u{7e}').contains(c)).is_some() {}
                }
                letters.next();
            }
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_shown_without_the_terminals_control_sequences() {
        assert_eq!(plain_text("a\u{1b}[1;32mgreen\u{1b}[0m\r\nb\u{1b}"), "agreen\nb");
        assert_eq!(plain_text("\u{1b}[2J\u{1b}[Hhello\u{8}\ttab"), "hello\ttab");
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read_and_it_starts_with_a_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        std::fs::write(dir.path().join("serial.log"), &lines).unwrap();
        let logs = read_logs(dir.path());
        let text = &logs["serial.log"];
        assert!(text.len() as u64 <= LOG_TAIL && text.ends_with("line 19999"));
        let first = text.lines().next().unwrap();
        assert!(lines.lines().any(|line| line == first), "{first}");
    }

    #[test]
    fn folders_come_first_and_a_link_counts_as_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.iso"), b"12345").unwrap();
        std::fs::create_dir(dir.path().join("Zoo")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("Zoo"), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("broken")).unwrap();
        let listing = list(dir.path()).unwrap();
        let names: Vec<(&str, Option<u64>)> = listing.iter().map(|e| (e.name.as_str(), e.size)).collect();
        assert_eq!(names, [("link", None), ("Zoo", None), ("a.iso", Some(5))]);
    }

    #[test]
    fn an_error_is_told_with_its_causes_as_a_sentence() {
        let error = library::Library::open("/proc/nowhere").unwrap_err();
        let text = chain(&error);
        assert!(text.starts_with("Could not make /proc/nowhere: ") && text.ends_with('.'), "{text}");
    }

    /// Workers over a library in a folder, with a machine that has a disk.
    fn workers(dir: &Path) -> (Arc<Shared>, Receiver<Update>) {
        let library = Library::open(dir).unwrap();
        let mut new = library::NewMachine::with_defaults("a", &HostLimits::read(dir));
        (new.memory_mib, new.disks) = (64, vec![library::NewDisk::create(1 << 20)]);
        library.create(&new).unwrap();
        let (updates, told) = mpsc::channel();
        let tell = Tell { updates, wake: Arc::new(|| ()) };
        let on = tell.clone();
        let jobs = Jobs::new(move |jobs| on.say(Update::Jobs(jobs)));
        let (kick, _) = mpsc::channel();
        (Arc::new(Shared { library, tell, watch: Mutex::default(), live: Mutex::default(), kick, jobs }), told)
    }

    #[test]
    fn settings_that_were_begun_before_a_snapshot_are_not_kept_over_what_that_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, told) = workers(dir.path());
        let begun = shared.library.load("a").unwrap().config;
        let changed = vmm_core::config::VmConfig { memory_mib: 128, ..begun.clone() };
        let save = |before: &vmm_core::config::VmConfig| {
            perform(&shared, Request::Save("a".into(), changed.clone().into(), before.clone().into()));
            told.try_iter().find(|update| matches!(update, Update::Saved(_) | Update::Failed(_))).unwrap()
        };
        shared.library.load("a").unwrap().take_snapshot("s", "").unwrap();
        let now = shared.library.load("a").unwrap().config;
        assert_ne!(now.disks, begun.disks);
        let Update::Failed(failure) = save(&begun) else { panic!("they were kept") };
        assert!(failure.cause.contains("changed meanwhile"), "{failure:?}");
        assert_eq!(shared.library.load("a").unwrap().config, now);
        // Of what it is now they are.
        assert!(matches!(save(&now), Update::Saved(_)));
        assert_eq!(shared.library.load("a").unwrap().config.memory_mib, 128);
    }

    #[test]
    fn work_on_a_disk_is_a_job_that_tells_what_came_of_it() {
        use super::super::action::DiskWork;
        use crate::jobs::{Disk, State};
        let dir = tempfile::tempdir().unwrap();
        let (shared, told) = workers(dir.path());
        let disk = || Disk::Of { machine: "a".into(), disk: 0 };
        let run = |request: Request| {
            perform(&shared, request);
            let mut words = Vec::new();
            // Until the last of the jobs has ended.
            for update in &told {
                match update {
                    Update::Notice(text) => words.push(text),
                    Update::Failed(failure) => words.push(failure.cause),
                    Update::Jobs(jobs) if jobs.iter().all(|job| !job.is_running()) => {
                        return (words.join("; "), jobs.last().unwrap().state.clone());
                    }
                    _ => {}
                }
            }
            panic!("no end is told");
        };
        let work = |work: DiskWork| run(Request::Disk(disk(), work));
        let grow = DiskWork::Grow("+1M".parse().unwrap(), First::Keep);
        assert_eq!(work(grow), ("Disk 1 of a has 2 MiB now".into(), State::Done));
        let switch = Request::SwitchDisk("a".into(), 0, vmm_core::backend::disk::Format::Qcow2);
        assert_eq!(run(switch), ("Disk 1 of a is a qcow2 image now".into(), State::Done));
        let other = Request::SwitchDisk("a".into(), 1, vmm_core::backend::disk::Format::Qcow2);
        let (words, state) = run(other);
        assert!(words.contains("has no disk 1") && matches!(state, State::Failed(_)), "{words}");
        assert_eq!(work(DiskWork::Check), ("Disk 1 of a is whole: nothing is wrong with it".into(), State::Done));
        let (words, state) = work(DiskWork::Compact);
        assert!(words.starts_with("Disk 1 of a takes ") && state == State::Done, "{words}");
        let facts = disks::look_at(&shared.library.load("a").unwrap().disk_image(0).unwrap()).unwrap();
        assert!((facts.sizes.format, facts.sizes.guest) == ("qcow2", 2 << 20) && facts.is_usable);
        assert!(disks::look_at(Path::new("/nowhere")).is_err());
        let log = std::fs::read_to_string(dir.path().join("a/logs/jobs.log")).unwrap();
        assert!(log.contains("Growing disk 1 of a: done"), "{log}");
    }
}
