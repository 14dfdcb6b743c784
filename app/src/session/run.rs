//! `orangery run`: a machine of the library in this process, until it stops.

use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_core::checkpoint::Checkpoint;
use vmm_core::config::VmConfig;
use vmm_core::vm::{BuildError, VmCommand};

use super::hub::{Hub, Line};
use super::log::Log;
use super::signals::Signals;
use super::{Identity, Session, Start, Streams, launch::Announcement};
use crate::control::server::Server;
use crate::library::{Library, LibraryError, Machine, Unsaved};

/// Why a machine did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The library would not give it.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// It could not be built.
    #[error("could not start {name:?}")]
    Build {
        /// The machine.
        name: String,
        /// Why.
        #[source]
        source: BuildError,
    },
    /// It was suspended, and can't go on.
    #[error("could not go on with {name:?}, which is still suspended: {why}")]
    GoOn {
        /// The machine.
        name: String,
        /// Why.
        why: String,
    },
    /// This process lacks something.
    #[error("could not {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Its window failed.
    #[error("{}", words(.0))]
    Window(anyhow::Error),
    /// It stopped, and no guest powered it off.
    #[error("{0}")]
    Ended(String),
}

/// An error and its causes, as one sentence.
fn words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl RunError {
    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
        move |source| RunError::Host { what, source }
    }
}

/// How a machine is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    /// Without a window: it needs no display.
    pub headless: bool,
    /// What its guest changes is gone when it ends.
    pub without_saving: bool,
}

/// Runs `machine` until it has stopped; with `handover`, it goes on from there. `announce` is called when it runs and its
/// socket answers.
///
/// # Errors
/// It runs already, cannot be built, or was stopped by a problem.
pub fn run(
    library: &Library,
    mut machine: Machine,
    manner: Manner,
    handover: Option<Handover>,
    announce: impl FnOnce(&Announcement),
) -> Result<(), RunError> {
    let _lock = machine.lock_to_run()?;
    library.make_id_unique(&mut machine)?;
    let checkpoints = machine.checkpoints();
    // What an earlier process did not finish. A folder that can't be cleaned up is no reason not to start.
    let _ = checkpoints.store().collect();
    machine.finish_what_was_begun()?;
    let _ = machine.discard_unsaved();
    let _ = library.remove_unfinished_copies();
    let unsaved = manner.without_saving.then(|| machine.unsaved()).transpose()?;
    let suspended = match (handover, machine.goes_on_from()?) {
        (Some(Handover { state, layers }), _) => {
            let checkpoint = Checkpoint::take_over(&state, layers);
            Some((checkpoint.map_err(RunError::host("read the machine that was handed over"))?, None))
        }
        // What is not saved is not what it was suspended in any more: that stays.
        (None, Some(id)) => Some((checkpoints.load(&id, &machine)?, Some(id).filter(|_| unsaved.is_none()))),
        (None, None) => None,
    };
    let signals = Signals::take().map_err(RunError::host("take this process's signals"))?;
    let kept = Kept { library, machine: &machine, unsaved: unsaved.as_ref() };
    if manner.headless {
        without_window(&kept, suspended, &signals, announce)
    } else {
        with_window(&kept, suspended, &signals, announce)
    }
}

/// A machine, and what becomes of it.
struct Kept<'a> {
    library: &'a Library,
    machine: &'a Machine,
    /// Where what is not saved goes.
    unsaved: Option<&'a Unsaved>,
}

impl Kept<'_> {
    fn identity(&self) -> Identity {
        Identity {
            id: self.machine.id.clone(),
            name: self.machine.name.clone(),
            tpm: Some(self.unsaved.map_or_else(|| self.machine.tpm(), |unsaved| unsaved.tpm.clone())),
            library: self.unsaved.is_none().then(|| self.library.clone()),
            without_saving: self.unsaved.is_some(),
        }
    }

    /// The machine as the monitor takes it.
    fn config(&self) -> VmConfig {
        self.unsaved.map_or_else(|| self.machine.resolved(), |unsaved| unsaved.config.clone())
    }

    /// Writes down which media are in the drives of a machine that has stopped: an installer that ejected its CD is not
    /// started again.
    fn keep_media(&self, session: &Session) {
        if self.unsaved.is_some() {
            return;
        }
        let drives = session.news.lock().drives.clone();
        let kept = self.library.load(&session.id).and_then(|mut machine| {
            let before = machine.resolved().cdroms;
            for ((slot, old), now) in machine.config.cdroms.iter_mut().zip(before).zip(drives) {
                // A path that leads to the same file stays as its owner wrote it.
                if old.path != now {
                    slot.path = now;
                }
            }
            self.library.save(&machine)
        });
        if let Err(error) = kept {
            session.note(&format!("Which media are in the drives could not be kept: {error}"));
        }
    }
}

/// What a machine goes on from, and its name if it is one of the machine's checkpoints.
type Suspended = (Checkpoint, Option<String>);

/// A machine that was forked off, in files that its process was given.
#[derive(Debug)]
pub struct Handover {
    /// Its state.
    pub state: std::fs::File,
    /// Its RAM.
    pub layers: Vec<std::fs::File>,
}

/// What serves a machine while it runs; dropped when it has stopped.
struct Service {
    session: Arc<Session>,
    _server: Server,
}

/// Starts the machine's streams and its socket, and tells that it runs.
fn serve(
    machine: &Machine,
    resumed: Option<Option<String>>,
    session: Arc<Session>,
    streams: Streams,
    announce: impl FnOnce(&Announcement),
) -> Result<Service, RunError> {
    let logs = machine.logs();
    let log = |name: &str| Log::start(logs.join(name)).ok();
    let Streams { serial, console, debug } = streams;
    let lines = vec![
        Line::new(serial, log("serial.log")),
        Line::new(console, log("console.log")),
        Line::new(debug, log("firmware.log")),
    ];
    let hub = Hub::start(lines).map_err(RunError::host("start the thread of the machine's streams"))?;
    let _ = session.hub.set(hub);
    let server = Server::start(&machine.id, session.clone());
    let server = server.map_err(RunError::host("open the machine's control socket"))?;
    session.note(&format!("Started {:?} (process {}).", machine.name, std::process::id()));
    let went_on = match &resumed {
        Some(Some(id)) => session.go_on(id),
        Some(None) => session.go_on_as_fork(),
        None => Ok(()),
    };
    went_on.map_err(|why| RunError::GoOn { name: machine.name.clone(), why })?;
    super::timeline::start(&session).map_err(RunError::host("start the thread of the machine's timeline"))?;
    announce(&Announcement::Started { id: machine.id.clone(), name: machine.name.clone(), pid: std::process::id() });
    Ok(Service { session, _server: server })
}

fn build_error(machine: &Machine) -> impl FnOnce(BuildError) -> RunError {
    let name = machine.name.clone();
    move |source| RunError::Build { name, source }
}

fn without_window(
    kept: &Kept<'_>,
    suspended: Option<Suspended>,
    signals: &Signals,
    announce: impl FnOnce(&Announcement),
) -> Result<(), RunError> {
    let machine = kept.machine;
    let log = Log::start(machine.logs().join("orangery.log")).ok();
    let (checkpoint, resumed) = suspended.unzip();
    let start = Start { identity: kept.identity(), config: &kept.config(), checkpoint, log };
    let (session, streams) = Session::start(start, || (), |_| ()).map_err(build_error(machine))?;
    let service = match serve(machine, resumed, session.clone(), streams, announce) {
        Ok(service) => service,
        Err(error) => {
            end(&session);
            return Err(error);
        }
    };
    wait(&service.session, signals).map_err(RunError::host("wait for the machine"))?;
    kept.keep_media(&service.session);
    finish(&service.session)
}

/// Waits until the machine has stopped; signals ask it to.
pub(super) fn wait(session: &Session, signals: &Signals) -> io::Result<()> {
    use std::os::fd::AsFd;
    let mut asked = Asked::default();
    while !session.has_stopped() {
        let mut fds = [
            PollFd::from_borrowed_fd(session.stopped(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        asked.answer(session, signals);
    }
    Ok(())
}

/// How often a signal asked for the end.
#[derive(Debug, Default)]
pub(super) struct Asked(u32);

impl Asked {
    /// The first signal presses the power button, the next pulls the plug. Says whether the plug was pulled.
    pub(super) fn answer(&mut self, session: &Session, signals: &Signals) -> bool {
        while signals.next().is_some() {
            self.0 += 1;
            if self.0 > 1 {
                session.note("A second signal: powering off.");
                end(session);
                return true;
            }
            session.note("A signal: asking the guest to shut down.");
            match session.send(VmCommand::ShutDown) {
                Ok(()) => eprintln!("orangery: asked the guest to shut down; once more powers it off\r"),
                Err(why) => {
                    eprintln!("orangery: could not ask the guest to shut down ({why}); once more powers it off\r")
                }
            }
        }
        self.0 > 1
    }
}

/// Pulls the plug. A machine that refuses has stopped already.
pub(super) fn end(session: &Session) {
    let _ = session.send(VmCommand::PowerOff);
}

/// Waits for the machine's threads, and says why it stopped if that was no power-off.
pub(super) fn finish(session: &Session) -> Result<(), RunError> {
    session.vm.wait();
    session.failure().map_or(Ok(()), |why| Err(RunError::Ended(why)))
}

#[cfg(not(feature = "gui"))]
fn with_window(_: &Kept<'_>, _: Option<Suspended>, _: &Signals, _: impl FnOnce(&Announcement)) -> Result<(), RunError> {
    Err(RunError::Window(anyhow::anyhow!("this Orangery was built without windows; use --headless")))
}

#[cfg(feature = "gui")]
fn with_window(
    kept: &Kept<'_>,
    suspended: Option<Suspended>,
    signals: &Signals,
    announce: impl FnOnce(&Announcement),
) -> Result<(), RunError> {
    use super::window;
    let machine = kept.machine;
    let log = Log::start(machine.logs().join("orangery.log")).ok();
    let config = kept.config();
    let (checkpoint, resumed) = suspended.unzip();
    let start = Start { identity: kept.identity(), config: &config, checkpoint, log };
    let title = match kept.unsaved {
        Some(_) => format!("{} (without saving)", machine.name),
        None => machine.name.clone(),
    };
    let mut options = window::options(&title, &config);
    options.can_keep_running = true;
    let mut service = None;
    let shown = window::show(
        options,
        start,
        |session, streams| {
            service = Some(serve(machine, resumed, session, streams, announce)?);
            Ok(())
        },
        signals,
    );
    let Some(service) = service else { return shown.map(|_| ()).map_err(|error| name_build(error, machine)) };
    if let Err(error) = shown {
        // The display is gone, the guest is not: its work is not lost with the window.
        service.session.note(&format!("{error}. The machine is asked to shut down."));
        let _ = service.session.send(VmCommand::ShutDown);
        wait(&service.session, signals).map_err(RunError::host("wait for the machine"))?;
        kept.keep_media(&service.session);
        finish(&service.session)?;
        return Err(error);
    }
    if !service.session.has_stopped() {
        end(&service.session);
    }
    kept.keep_media(&service.session);
    finish(&service.session)
}

/// Gives a failed build the machine's name.
#[cfg(feature = "gui")]
fn name_build(error: RunError, machine: &Machine) -> RunError {
    match error {
        RunError::Build { source, .. } => RunError::Build { name: machine.name.clone(), source },
        other => other,
    }
}
