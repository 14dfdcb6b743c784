//! The control thread: owns the machine, carries out commands one after another, and tells what happens.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::capture::{self, Capture, CaptureError, Captured, DiskSwitch};
use super::lifecycle::{Lifecycle, Transition};
use super::machine::{Machine, Notice};
use super::{BuildError, CommandError, Ports, Problem, VmCommand, VmEvent};
use crate::base::{PageTable, Section, SharePass, explain};
use crate::checkpoint::{Checkpoint, Moment, Store};
use crate::config::VmConfig;
use crate::hw::Action;
use crate::vcpu::CpuEvent;

/// How often RAM is gone through before a fork: a guest may write as fast as it is shared.
const SHARE_PASSES: usize = 4;

/// Who waits to hear whether something was done.
type Reply<T> = Sender<Result<T, CommandError>>;

/// A part of RAM is shared: what is left of the pass, if anything, and how long the guest was stopped.
type Shared = (Option<SharePass>, Duration);

/// What reaches the control thread.
pub(super) enum Message {
    /// From an application; the answer says whether it was done.
    Command(VmCommand, Reply<()>),
    /// A checkpoint is wanted.
    Capture(Capture, Reply<(Moment, Duration)>),
    /// A fork will be wanted: a part of RAM is to be shared ahead, in this pass or a new one.
    ShareAhead(Option<SharePass>, Reply<Option<Shared>>),
    /// A fork is wanted; these disks go on with other images.
    Fork(Vec<DiskSwitch>, Reply<(Vec<Section>, PageTable, Duration)>),
    /// These disks are to go on with other images.
    SwitchDisks(Vec<DiskSwitch>, Reply<()>),
    /// The checkpoint of a machine that waits for it is written, or was given up.
    Released,
    /// From the machine itself.
    Notice(Notice),
}

/// The state as others see it.
#[derive(Default)]
struct Board {
    state: Mutex<Option<Lifecycle>>,
    changed: Condvar,
    /// The control thread has ended: nothing of the machine is left.
    gone: Mutex<bool>,
}

/// Commands a machine; clones command the same one.
#[derive(Clone)]
pub struct VmHandle {
    messages: Sender<Message>,
    board: Arc<Board>,
    config: Arc<VmConfig>,
}

impl VmHandle {
    /// Asks the machine for something, and waits until it is done or refused (never long).
    pub fn send(&self, command: VmCommand) -> Result<(), CommandError> {
        self.ask(|reply| Message::Command(command, reply))
    }

    /// Takes the machine as it is now for a checkpoint `id` in `store`, which [`Captured::write`] makes. With `going_on`, a
    /// machine that runs goes on at once, and pages that are as in the checkpoint `last` are not written again; else it stays
    /// paused, and can't be resumed before that is done. `disks` go on with other images from this moment on.
    pub fn capture(
        &self,
        store: &Store,
        id: &str,
        last: Option<&str>,
        going_on: bool,
        disks: Vec<DiskSwitch>,
    ) -> Result<Captured, CaptureError> {
        let size = self.config.memory_mib << 20;
        let (draft, capture) = capture::prepare(store, id, last, size, going_on, disks)?;
        let (moment, stopped) = self.ask(|reply| Message::Capture(capture, reply))?;
        let hold = (!going_on).then(|| Hold(self.messages.clone()));
        Ok(Captured { draft, moment, config: (*self.config).clone(), stopped, _hold: hold })
    }

    /// Takes the machine as it is now for another one, with which it shares RAM; it goes on at once. `disks` go on with other
    /// images from this moment on. Says for how long the guest was stopped at the longest: RAM that it has written since it
    /// was shared last is shared in many short stops before, for otherwise that last one would be long.
    pub fn fork(&self, disks: Vec<DiskSwitch>) -> Result<(Checkpoint, Duration), CommandError> {
        let ahead = self.share_ahead()?;
        let (sections, pages, stopped) = self.ask(|reply| Message::Fork(disks, reply))?;
        let (config, size) = ((*self.config).clone(), self.config.memory_mib << 20);
        Ok((Checkpoint { config, sections, size, pages }, stopped.max(ahead)))
    }

    /// Shares RAM in passes until little is left, and says what the longest stop was.
    fn share_ahead(&self) -> Result<Duration, CommandError> {
        let mut longest = Duration::ZERO;
        for _ in 0..SHARE_PASSES {
            let mut pass = None;
            loop {
                let part = self.ask(|reply| Message::ShareAhead(pass, reply))?;
                let Some((rest, stopped)) = part else { return Ok(longest) };
                longest = longest.max(stopped);
                if rest.is_none() {
                    break;
                }
                // The guest has as much time for itself.
                std::thread::sleep(stopped);
                pass = rest;
            }
        }
        Ok(longest)
    }

    /// Has disks go on with other images, which read the same. The guest is stopped for a moment.
    pub fn switch_disks(&self, disks: Vec<DiskSwitch>) -> Result<(), CommandError> {
        self.ask(|reply| Message::SwitchDisks(disks, reply))
    }

    fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, CommandError> {
        let over = || CommandError("the virtual machine has stopped".into());
        let (sender, receiver) = mpsc::channel();
        self.messages.send(message(sender)).map_err(|_| over())?;
        receiver.recv().map_err(|_| over())?
    }

    /// What the machine is doing.
    pub fn state(&self) -> Lifecycle {
        let state = self.board.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unwrap_or(Lifecycle::Created)
    }

    /// Waits until the machine has stopped and all its threads have ended.
    pub fn wait(&self) {
        let mut gone = self.board.gone.lock().unwrap_or_else(PoisonError::into_inner);
        while !*gone {
            gone = self.board.changed.wait(gone).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A machine that waits for its checkpoint, until this is dropped.
pub(super) struct Hold(Sender<Message>);

impl Drop for Hold {
    fn drop(&mut self) {
        // A machine that is gone waits no more.
        let _ = self.0.send(Message::Released);
    }
}

/// Builds the machine on its control thread and starts it.
pub(super) fn start(
    config: &VmConfig,
    ports: Ports,
    checkpoint: Option<Checkpoint>,
    events: impl Fn(VmEvent) + Send + 'static,
) -> Result<VmHandle, BuildError> {
    let (messages, inbox) = mpsc::channel();
    let (built, result) = mpsc::channel();
    let board = Arc::new(Board::default());
    let shared = Arc::new(config.clone());
    let (config, for_machine, for_thread) = (shared.clone(), messages.clone(), board.clone());
    let first = if checkpoint.is_some() { Transition::Restore } else { Transition::Start };
    let body = move || {
        let _gone = Gone(for_thread.clone());
        let run = std::panic::AssertUnwindSafe(|| match Machine::build(&config, ports, for_machine, checkpoint) {
            Err(error) => drop(built.send(Err(error))),
            Ok(machine) => {
                let control =
                    Control { machine, state: Lifecycle::Created, held: 0, board: &for_thread, events: &events };
                control.run(&inbox, first, || drop(built.send(Ok(()))));
            }
        });
        if std::panic::catch_unwind(run).is_err() {
            events(VmEvent::Problem(Problem {
                source: "machine".into(),
                message: "a defect in the monitor stopped the machine".into(),
                paused: false,
            }));
            set(&for_thread, Lifecycle::Stopped);
            events(VmEvent::State(Lifecycle::Stopped));
        }
    };
    let spawned = std::thread::Builder::new().name("control".into()).spawn(body);
    spawned.map_err(|source| BuildError::Host { what: "could not start a thread".into(), source: source.into() })?;
    match result.recv() {
        Ok(Ok(())) => Ok(VmHandle { messages, board, config: shared }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(BuildError::Defect),
    }
}

/// Says that the thread is over, however it ends.
struct Gone(Arc<Board>);

impl Drop for Gone {
    fn drop(&mut self) {
        *self.0.gone.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

fn set(board: &Board, state: Lifecycle) {
    *board.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
}

struct Control<'a, E: Fn(VmEvent)> {
    machine: Machine,
    state: Lifecycle,
    /// Checkpoints that are being written while the machine waits.
    held: usize,
    board: &'a Board,
    events: &'a E,
}

impl<E: Fn(VmEvent)> Control<'_, E> {
    fn run(mut self, inbox: &Receiver<Message>, first: Transition, started: impl FnOnce()) {
        let entered = self.enter(first);
        debug_assert!(entered.is_ok());
        if self.state == Lifecycle::Running {
            self.machine.resume();
        }
        started();
        while self.state != Lifecycle::Stopped {
            match inbox.recv() {
                Ok(Message::Command(command, reply)) => {
                    let result = self.command(command);
                    let _ = reply.send(result);
                }
                Ok(Message::Capture(capture, reply)) => {
                    let result = self.capture(capture);
                    let _ = reply.send(result);
                }
                Ok(Message::ShareAhead(pass, reply)) => drop(reply.send(self.share_ahead(pass))),
                Ok(Message::Fork(disks, reply)) => {
                    let forked = self.at_rest(true, |machine| machine.fork(&disks));
                    let _ = reply.send(forked.map(|((sections, pages), stopped)| (sections, pages, stopped)));
                }
                Ok(Message::SwitchDisks(disks, reply)) => {
                    let switched = self.at_rest(true, |machine| machine.switch_disks(&disks));
                    let _ = reply.send(switched.map(|((), _)| ()));
                }
                Ok(Message::Released) => self.held = self.held.saturating_sub(1),
                Ok(Message::Notice(notice)) => self.notice(notice),
                Err(_) => break,
            }
        }
    }

    /// Changes the state if the table allows it.
    fn enter(&mut self, transition: Transition) -> Result<(), CommandError> {
        let refused = || CommandError(format!("the virtual machine is {}; it can't do that now", self.state.word()));
        let next = self.state.after(transition).ok_or_else(refused)?;
        if next != self.state {
            self.state = next;
            set(self.board, next);
            (self.events)(VmEvent::State(next));
        }
        Ok(())
    }

    /// Shares a part of RAM. `None`: there is too little to begin a pass for.
    fn share_ahead(&mut self, pass: Option<SharePass>) -> Result<Option<Shared>, CommandError> {
        let mut pass = match pass {
            Some(pass) => pass,
            None if self.machine.has_much_to_share()? => self.machine.share_pass()?,
            None => return Ok(None),
        };
        let (more, stopped) = self.at_rest(true, |machine| machine.share_ahead(&mut pass))?;
        Ok(Some((more.then_some(pass), stopped)))
    }

    /// Stops the machine for a moment, or until its checkpoint is written.
    fn capture(&mut self, capture: Capture) -> Result<(Moment, Duration), CommandError> {
        let going_on = capture.going_on;
        let taken = self.at_rest(going_on, |machine| machine.moment(capture));
        if !going_on && taken.is_ok() {
            self.held += 1;
        }
        taken
    }

    /// Does something while nothing of the machine runs, and says how long that took. A machine that ran goes on then, or
    /// stays paused; one that was paused stays so.
    fn at_rest<T>(
        &mut self,
        going_on: bool,
        work: impl FnOnce(&Machine) -> Result<T, CommandError>,
    ) -> Result<(T, Duration), CommandError> {
        let began = Instant::now();
        let ran = self.state == Lifecycle::Running;
        if !ran && self.state != Lifecycle::Paused {
            return Err(CommandError(format!("the virtual machine is {}; it can't be saved", self.state.word())));
        }
        if ran {
            self.machine.pause();
        }
        let result = work(&self.machine);
        if ran && (going_on || result.is_err()) {
            self.machine.resume();
        } else if ran {
            self.enter(Transition::Pause)?;
        }
        Ok((result?, began.elapsed()))
    }

    fn command(&mut self, command: VmCommand) -> Result<(), CommandError> {
        if self.held > 0 && matches!(command, VmCommand::Resume | VmCommand::Reset) {
            return Err(CommandError("the virtual machine is being saved; it can't go on before that is done".into()));
        }
        match command {
            VmCommand::ShutDown => {
                if self.state != Lifecycle::Running {
                    return Err(CommandError(format!(
                        "the virtual machine is {}; resume it so that it can shut down",
                        self.state.word()
                    )));
                }
                self.machine.press_power_button();
                Ok(())
            }
            VmCommand::PowerOff => self.stop(),
            VmCommand::Reset => {
                self.enter(Transition::Reset)?;
                self.reset();
                Ok(())
            }
            VmCommand::Pause => {
                self.enter(Transition::Pause)?;
                self.machine.pause();
                Ok(())
            }
            VmCommand::Resume => {
                self.enter(Transition::Resume)?;
                self.machine.resume();
                Ok(())
            }
            VmCommand::NewGeneration { id } => {
                self.machine.renew_generation(id);
                Ok(())
            }
            VmCommand::ResizeDisplay { width, height } => {
                self.machine.resize_display(width, height);
                Ok(())
            }
            VmCommand::ChangeMedium { drive, path } => self.machine.change_medium(drive, path.as_deref()),
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Cpu { generation, event } => {
                // A CPU that asked for something before the last reset is not heard: that machine is gone.
                if generation != self.machine.generation() {
                    return;
                }
                match event {
                    CpuEvent::Action(Action::Reset) => {
                        (self.events)(VmEvent::GuestReset);
                        self.reset();
                    }
                    CpuEvent::Action(Action::PowerOff) => drop(self.stop()),
                    CpuEvent::Failed(why) => self.fail("CPU", why),
                    CpuEvent::Crashed(code) => {
                        let message =
                            format!("its operating system crashed (code {code:#x}); it may restart by itself");
                        (self.events)(VmEvent::Problem(Problem { source: "guest".into(), message, paused: false }));
                    }
                }
            }
            Notice::Problem { source, message } => {
                (self.events)(VmEvent::Problem(Problem { source, message, paused: false }));
            }
            Notice::Stalled { source, message } => {
                (self.events)(VmEvent::Problem(Problem { source, message, paused: true }));
                // Several devices may ask for it, or a person did before.
                if self.enter(Transition::Pause).is_ok() {
                    self.machine.pause();
                }
            }
            Notice::Ejected { drive } => (self.events)(VmEvent::Ejected { drive }),
            Notice::Defect(thread) => {
                self.fail(&thread, "a defect in the monitor stopped one of its threads".into());
            }
        }
    }

    fn reset(&mut self) {
        if let Err(error) = self.machine.reset(self.state == Lifecycle::Running) {
            self.fail("machine", format!("it could not be reset: {}", explain(&error)));
        }
    }

    /// The machine can't go on.
    fn fail(&mut self, source: &str, message: String) {
        (self.events)(VmEvent::Problem(Problem { source: source.into(), message, paused: false }));
        let _ = self.stop();
    }

    fn stop(&mut self) -> Result<(), CommandError> {
        self.machine.pause();
        self.enter(Transition::Stop)
    }
}
