//! The process that runs a machine: the monitor, and all that listens to it and commands it.
//!
//! [`Session::start`] builds the machine with its screen, its input and its streams. [`run()`] serves it on the control
//! socket, with a window or without; [`boot()`] puts its serial port on the terminal.

mod hub;
mod launch;
mod limits;
mod log;
mod picture;
mod run;
mod save;
mod signals;
mod terminal;
mod throwaway;
mod timeline;
mod tpm;
mod turns;
#[cfg(feature = "gui")]
mod window;

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vmm_core::backend::chardev::CharPort;
use vmm_core::backend::display::Screen;
use vmm_core::backend::input::{ABS_MAX, InputEvent, InputPort, code, ev};
use vmm_core::checkpoint::Checkpoint;
use vmm_core::config::VmConfig;
use vmm_core::vm::{BuildError, Lifecycle, Ports, Vm, VmCommand, VmEvent, VmHandle};

pub use launch::{Announcement, LaunchError, launch, launch_demo, launch_with};
pub use picture::png;
pub use run::{Handover, Manner, RunError, run};
pub use signals::Signals;
pub use terminal::attach;
pub use throwaway::{Throwaway, boot, demo};

use crate::control::protocol::{Button, Pointer, Request};
use crate::control::{Event, Power, Screenshot, State, Stream, keys, server};
use crate::library::{Library, Timestamp};
use hub::Hub;
use log::Log;
use timeline::Alarm;
use tpm::TpmProcess;
use turns::Turns;

/// Events that wait for a slow listener before it is let go.
const MAX_EVENTS: usize = 256;

/// A machine in this process, with everything around it.
pub struct Session {
    id: String,
    name: String,
    since: Timestamp,
    vm: VmHandle,
    /// The process that is its TPM.
    _tpm: Option<TpmProcess>,
    screen: Screen,
    keyboard: InputPort,
    pointer: InputPort,
    news: Arc<News>,
    /// Absent in a throwaway machine without a window: its serial port is the terminal's.
    hub: OnceLock<Hub>,
    /// Asks the window to show itself; absent without one.
    raise: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Typing of two clients is not mixed.
    typing: Mutex<()>,
    /// The library that it is kept in; a throwaway machine is in none.
    library: Option<Library>,
    /// What is saved of it is changed by one at a time.
    turns: Turns,
    /// It is in a library, and what happens now is not saved there.
    without_saving: bool,
    /// Wakes the thread of its timeline.
    alarm: Alarm,
}

/// What a machine is started from.
struct Start<'a> {
    identity: Identity,
    config: &'a VmConfig,
    /// What it goes on from, if it does.
    checkpoint: Option<Checkpoint>,
    log: Option<Log>,
}

/// Who a machine is.
struct Identity {
    id: String,
    name: String,
    /// Where its TPM keeps its state, if it has one; nowhere if nothing of the machine is kept.
    tpm: Option<PathBuf>,
    /// The library that it is kept in, if it is.
    library: Option<Library>,
    /// It is in a library, and what happens now is not saved there.
    without_saving: bool,
}

/// The host's ends of a machine's streams, until somebody takes them.
struct Streams {
    serial: CharPort,
    console: CharPort,
    debug: CharPort,
}

/// What a machine told, and who wants to know.
struct News {
    inner: Mutex<NewsInner>,
    /// Readable when the machine has stopped.
    stopped: OwnedFd,
}

struct NewsInner {
    listeners: Vec<SyncSender<Event>>,
    drives: Vec<Option<PathBuf>>,
    problem: Option<String>,
    /// The last that was told before the machine stopped was a problem.
    failed: bool,
    stopped: bool,
    log: Option<Log>,
}

impl News {
    fn lock(&self) -> MutexGuard<'_, NewsInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: &VmEvent) {
        let mut inner = self.lock();
        match event {
            VmEvent::State(Lifecycle::Stopped) => inner.stopped = true,
            VmEvent::State(_) | VmEvent::GuestReset => inner.failed = false,
            VmEvent::Ejected { drive } => {
                if let Some(medium) = inner.drives.get_mut(*drive) {
                    *medium = None;
                }
            }
            VmEvent::Problem(problem) => {
                inner.problem = Some(format!("{}: {}", problem.source, problem.message));
                inner.failed = true;
            }
        }
        let told = Event::from(event);
        inner.note(&describe(&told));
        // One that is gone or too slow hears no more.
        inner.listeners.retain(|listener| listener.try_send(told.clone()).is_ok());
        if inner.stopped {
            // Listeners hear the end of the stream.
            inner.listeners.clear();
            let _ = rustix::io::write(&self.stopped, &1u64.to_ne_bytes());
        }
    }
}

impl NewsInner {
    /// Puts a line in the machine's log.
    fn note(&mut self, text: &str) {
        let mut line = String::new();
        let _ = writeln!(line, "{} {text}", Timestamp::now());
        if self.log.as_mut().is_some_and(|log| log.write(line.as_bytes()).is_err()) {
            self.log = None;
        }
    }
}

/// An event as a line of a log.
fn describe(event: &Event) -> String {
    match event {
        Event::Power { power } => format!("The machine is {}.", power.word()),
        Event::GuestReset => "The guest restarted.".into(),
        Event::Ejected { drive } => format!("The guest ejected the medium of CD-ROM drive {drive}."),
        Event::Problem { source, message, paused: true } => format!("{source}: {message} (the machine is paused)"),
        Event::Problem { source, message, paused: false } => format!("{source}: {message}"),
    }
}

impl Session {
    /// Builds the machine and starts it; with a checkpoint, it is as that has it, and paused. `wake` is called when there is
    /// something new on the screen, `events` with all that the machine tells, both from its threads.
    fn start(
        start: Start<'_>,
        wake: impl Fn() + Send + Sync + 'static,
        events: impl Fn(&VmEvent) + Send + 'static,
    ) -> Result<(Arc<Session>, Streams), BuildError> {
        let Start { identity, config, checkpoint, log } = start;
        limits::raise_descriptors();
        let host = |source: io::Error| BuildError::Host {
            what: "could not make the machine's ports".into(),
            source: source.into(),
        };
        let news = Arc::new(News {
            inner: Mutex::new(NewsInner {
                listeners: Vec::new(),
                drives: config.cdroms.iter().map(|drive| drive.path.clone()).collect(),
                problem: None,
                failed: false,
                stopped: false,
                log,
            }),
            stopped: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(io::Error::from)
                .map_err(host)?,
        });
        let screen = Screen::new(wake);
        let (keyboard, pointer) = (InputPort::new().map_err(host)?, InputPort::new().map_err(host)?);
        let (serial, serial_host) = CharPort::pair().map_err(host)?;
        let (console, console_host) = CharPort::pair().map_err(host)?;
        let (debug, debug_host) = CharPort::pair().map_err(host)?;
        let Identity { id, name, tpm, library, without_saving } = identity;
        let (tpm_process, tpm) = match config.tpm.then(|| TpmProcess::start(tpm.as_deref())).transpose() {
            Ok(started) => started.unzip(),
            Err(source) => {
                let what = "could not start the machine's TPM".into();
                return Err(BuildError::Host { what, source: source.into() });
            }
        };
        let ports = Ports {
            display: screen.sink(),
            keyboard: keyboard.clone(),
            pointer: pointer.clone(),
            serial,
            console,
            debug,
            tpm,
        };
        let told = news.clone();
        let tell = move |event: VmEvent| {
            told.tell(&event);
            events(&event);
        };
        let vm = match checkpoint {
            Some(checkpoint) => Vm::restore(config, ports, checkpoint, tell)?,
            None => Vm::start(config, ports, tell)?,
        };
        let session = Session {
            id,
            name,
            since: Timestamp::now(),
            vm,
            _tpm: tpm_process,
            screen,
            keyboard,
            pointer,
            news,
            hub: OnceLock::new(),
            raise: OnceLock::new(),
            typing: Mutex::default(),
            library,
            turns: Turns::default(),
            without_saving,
            alarm: Alarm::new().map_err(host)?,
        };
        Ok((Arc::new(session), Streams { serial: serial_host, console: console_host, debug: debug_host }))
    }

    /// Asks the machine for something.
    fn send(&self, command: VmCommand) -> Result<(), String> {
        let change = match &command {
            VmCommand::ChangeMedium { drive, path } => Some((*drive, path.clone())),
            _ => None,
        };
        self.vm.send(command).map_err(|error| error.to_string())?;
        if let Some((drive, path)) = change
            && let Some(medium) = self.news.lock().drives.get_mut(drive)
        {
            *medium = path;
        }
        Ok(())
    }

    #[cfg(feature = "gui")]
    fn type_text(&self, text: &str) -> Result<(), String> {
        let changes = keys::typing(text)?;
        server::Host::keys(self, &changes);
        Ok(())
    }

    /// A descriptor that is readable when the machine has stopped.
    fn stopped(&self) -> BorrowedFd<'_> {
        self.news.stopped.as_fd()
    }

    fn has_stopped(&self) -> bool {
        self.news.lock().stopped
    }

    /// Why it stopped, when that was no power-off.
    fn failure(&self) -> Option<String> {
        let news = self.news.lock();
        news.problem.clone().filter(|_| news.failed)
    }

    fn note(&self, text: &str) {
        self.news.lock().note(text);
    }
}

/// A stream's number in the hub.
fn line(stream: Stream) -> usize {
    match stream {
        Stream::Serial => 0,
        Stream::Console => 1,
    }
}

impl server::Host for Session {
    fn identity(&self) -> (String, String) {
        (self.id.clone(), self.name.clone())
    }

    fn state(&self) -> State {
        let screen = self.screen.mode().map(|mode| (mode.width, mode.height));
        let news = self.news.lock();
        State {
            id: self.id.clone(),
            name: self.name.clone(),
            pid: std::process::id(),
            power: Power::from(self.vm.state()),
            since: self.since,
            screen,
            frames: self.screen.frames(),
            tablet: self.pointer.is_claimed(),
            window: self.raise.get().is_some(),
            without_saving: self.without_saving,
            drives: news.drives.clone(),
            problem: news.problem.clone(),
        }
    }

    fn command(&self, request: Request) -> Result<(), String> {
        match request {
            Request::ShutDown => self.send(VmCommand::ShutDown),
            Request::PowerOff => self.send(VmCommand::PowerOff),
            Request::Reset => self.send(VmCommand::Reset),
            Request::Pause => self.send(VmCommand::Pause),
            Request::Resume => self.send(VmCommand::Resume),
            Request::ChangeMedium { drive, path } => {
                if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                    return Err("a medium's path must be absolute".into());
                }
                self.send(VmCommand::ChangeMedium { drive, path })
            }
            Request::SetTimeline { timeline } => {
                self.set_timeline(timeline)?;
                self.alarm.ring();
                Ok(())
            }
            Request::Raise => match self.raise.get() {
                Some(raise) => {
                    raise();
                    Ok(())
                }
                None => Err("it runs without a window; its process was started with --headless".into()),
            },
            Request::DescribeSnapshot { snapshot, name, note } => self.describe_snapshot(&snapshot, &name, &note),
            // The server answers these itself.
            Request::Hello { .. }
            | Request::Cancel
            | Request::State
            | Request::Suspend
            | Request::TakeSnapshot { .. }
            | Request::DeleteSnapshot { .. }
            | Request::Fork { .. }
            | Request::KeepOnTimeline
            | Request::Screenshot { .. }
            | Request::Type { .. }
            | Request::Press { .. }
            | Request::Pointer(_)
            | Request::Attach { .. }
            | Request::Listen => Err("this is no command".into()),
        }
    }

    fn work(&self, request: Request, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), String> {
        match request {
            Request::Suspend => self.suspend(progress),
            Request::TakeSnapshot { name, note } => self.take_snapshot(&name, &note, progress),
            Request::DeleteSnapshot { name } => self.delete_snapshot(&name, progress),
            Request::Fork { name } => self.fork(&name, progress),
            Request::KeepOnTimeline => self.keep_on_timeline(progress),
            _ => Err("this is no work".into()),
        }
    }

    fn screenshot(&self, max_width: Option<u32>) -> Result<Screenshot, String> {
        let (mode, pixels) = self.screen.snapshot().ok_or("its screen is off")?;
        picture::png(mode, &pixels, max_width)
    }

    fn keys(&self, changes: &[keys::Change]) {
        let _one_at_a_time = self.typing.lock().unwrap_or_else(PoisonError::into_inner);
        keys::send(&self.keyboard, changes);
    }

    fn pointer(&self, pointer: Pointer) {
        self.pointer.send(&report(pointer));
    }

    fn attach(&self, stream: Stream, client: UnixStream) -> Result<(), String> {
        self.hub.get().ok_or("its streams are on a terminal")?.attach(line(stream), client);
        Ok(())
    }

    fn listen(&self) -> Receiver<Event> {
        let (sender, receiver) = sync_channel(MAX_EVENTS);
        let mut news = self.news.lock();
        if !news.stopped {
            news.listeners.push(sender);
        }
        receiver
    }
}

/// A pointer request as one report.
fn report(pointer: Pointer) -> Vec<InputEvent> {
    let Pointer { to, by, button, wheel } = pointer;
    let mut report = Vec::new();
    let mut add = |kind, code, value| report.push(InputEvent { kind, code, value });
    if let Some((x, y)) = to {
        // A NaN becomes 0.
        let position = |part: f64| (part.clamp(0.0, 1.0) * f64::from(ABS_MAX)) as i32;
        add(ev::ABS, code::ABS_X, position(x));
        add(ev::ABS, code::ABS_Y, position(y));
    }
    if let Some((x, y)) = by {
        add(ev::REL, code::REL_X, x);
        add(ev::REL, code::REL_Y, y);
    }
    if let Some(notches) = wheel {
        add(ev::REL, code::REL_WHEEL, notches);
    }
    if let Some((button, pressed)) = button {
        let code = match button {
            Button::Left => code::BTN_LEFT,
            Button::Middle => code::BTN_MIDDLE,
            Button::Right => code::BTN_RIGHT,
        };
        add(ev::KEY, code, i32::from(pressed));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_request_is_one_report_within_the_axes() {
        let all =
            Pointer { to: Some((0.5, 7.0)), by: Some((-3, 4)), button: Some((Button::Right, true)), wheel: Some(-1) };
        let told: Vec<_> = report(all).into_iter().map(|e| (e.kind, e.code, e.value)).collect();
        let expected = [(3, 0, 0x3fff), (3, 1, 0x7fff), (2, 0, -3), (2, 1, 4), (2, 8, -1), (1, 0x111, 1)];
        assert_eq!(told, expected);
        let nowhere = Pointer { to: Some((f64::NAN, -1.0)), ..Pointer::default() };
        assert!(report(nowhere).iter().all(|e| e.value == 0));
    }

    fn news() -> News {
        News {
            inner: Mutex::new(NewsInner {
                listeners: vec![],
                drives: vec![Some("/a.iso".into()), Some("/b.iso".into())],
                problem: None,
                failed: false,
                stopped: false,
                log: None,
            }),
            stopped: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
        }
    }

    fn problem() -> VmEvent {
        VmEvent::Problem(vmm_core::vm::Problem { source: "disk 0".into(), message: "is gone".into(), paused: false })
    }

    #[test]
    fn an_end_by_a_problem_is_told_from_one_by_the_guest() {
        for (events, failed) in [
            (vec![VmEvent::State(Lifecycle::Running), VmEvent::State(Lifecycle::Stopped)], false),
            (vec![problem(), VmEvent::State(Lifecycle::Stopped)], true),
            (vec![problem(), VmEvent::State(Lifecycle::Running), VmEvent::State(Lifecycle::Stopped)], false),
        ] {
            let news = news();
            for event in &events {
                news.tell(event);
            }
            let inner = news.lock();
            assert_eq!((inner.failed, inner.stopped), (failed, true), "{events:?}");
        }
    }

    #[test]
    fn an_ejected_medium_is_out_of_its_drive() {
        let news = news();
        news.tell(&VmEvent::Ejected { drive: 1 });
        news.tell(&VmEvent::Ejected { drive: 9 });
        assert_eq!(news.lock().drives, [Some(PathBuf::from("/a.iso")), None]);
    }

    #[test]
    fn a_listener_that_does_not_listen_is_let_go() {
        let news = news();
        let (slow, kept) = sync_channel(2);
        let (gone, _) = sync_channel::<Event>(2);
        news.lock().listeners.extend([slow, gone]);
        for _ in 0..3 {
            news.tell(&problem());
        }
        assert!(news.lock().listeners.is_empty());
        assert_eq!(kept.iter().count(), 2);
    }
}
