//! The console's event loop: where events of the window system, the machine and the overlay meet.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use vmm_core::backend::display::{Mode, Screen};
use vmm_core::vm::{Lifecycle, VmCommand, VmEvent};
use winit::application::ApplicationHandler;
use winit::event::{DeviceEvent, DeviceId, ElementState, KeyEvent, MouseButton, MouseScrollDelta, WindowEvent};
use winit::event_loop::{ActiveEventLoop, ControlFlow};
use winit::keyboard::{Key, ModifiersState};
use winit::platform::scancode::PhysicalKeyExtScancode;
use winit::window::{CursorGrabMode, CursorIcon, Fullscreen, WindowId};

use super::actions::{self, Action, COMBINATIONS};
use super::dialogs::Dialog;
use super::grab::KeyboardGrab;
use super::input::{Input, KeyEffect};
use super::keys::{Stroke, us_character};
use super::overlay::{Ask, InputState, Model, Notice, Progress, Tab};
use super::pointer::{Button, Recentring};
use super::serial::Serial;
use super::transform::{ViewMode, pan_for};
use super::view::{self, ViewError};
use super::window::ConsoleWindow;
use super::worker::{Outcome, Worker};
use super::{ConsoleSession, Loss, Options, Renderer, Request, Saving, Waker, look};
use crate::theme::{Tone, size};

/// The most problems that are kept.
const MAX_PROBLEMS: usize = 20;

/// What wakes the loop from outside.
#[derive(Debug)]
pub enum Wakeup {
    /// The screen or a channel has something new.
    News,
    /// A screen reader wants something.
    Accessibility(egui_winit::accesskit_winit::Event),
}

impl From<egui_winit::accesskit_winit::Event> for Wakeup {
    fn from(event: egui_winit::accesskit_winit::Event) -> Wakeup {
        Wakeup::Accessibility(event)
    }
}

/// How the pointer is held while it is captured.
#[derive(Debug)]
enum Hold {
    /// The window system keeps it in place and tells raw movement.
    Locked,
    /// It is confined, and put back to the middle.
    Recentred(Recentring),
}

/// The console.
pub struct App {
    options: Options,
    forced: Option<Renderer>,
    waker: Waker,
    screen: Screen,
    events: Receiver<VmEvent>,
    requests: Receiver<Request>,
    outcomes: Receiver<Outcome>,
    worker: Worker,
    input: Input,
    serial: Option<Serial>,
    /// The keys held that change what others mean.
    modifiers: ModifiersState,
    /// Lines of the terminal that the wheel has turned by and not scrolled yet.
    turned: f64,
    model: Model,
    window: Option<ConsoleWindow>,
    grab: KeyboardGrab,
    /// Keyboard and pointer are the guest's alone.
    captured: bool,
    was_captured: bool,
    focused: bool,
    hold: Option<Hold>,
    /// Where the host's pointer is, if it is in the window.
    at: Option<(f64, f64)>,
    over_guest: bool,
    /// The next turn of the wheel is the release of a wheel button, see [`App::device_event`].
    wheel_released: bool,
    pan: (f64, f64),
    offered: Option<(u32, u32)>,
    offer_at: Option<Instant>,
    edge_at: Option<Instant>,
    toolbar_until: Option<Instant>,
    quit_at: Option<Instant>,
    result: anyhow::Result<()>,
}

impl App {
    /// A console without a window yet.
    pub fn new(
        options: Options,
        forced: Option<Renderer>,
        session: ConsoleSession,
        waker: Waker,
    ) -> anyhow::Result<App> {
        let ConsoleSession { screen, keyboard, pointer, serial, command, type_text, save, past, events, requests } =
            session;
        let serial = serial.map(|stream| Serial::start(stream, waker.clone())).transpose()?;
        let can_save = save.is_some();
        let (worker, outcomes) = Worker::start(command, type_text, save, past, waker.clone())?;
        let model = Model {
            title: options.title.clone(),
            state: Lifecycle::Created,
            tab: Tab::Screen,
            terminal: None,
            mode: None,
            scale: None,
            input: InputState::ClickToCapture,
            view: ViewMode::Scaled,
            follow: true,
            fullscreen: options.fullscreen,
            toolbar: false,
            drives: options.drives.clone(),
            problems: Vec::new(),
            notice: None,
            banner: None,
            dialog: None,
            can_keep_running: options.can_keep_running,
            can_save,
            saving: None,
            graphics: String::new(),
        };
        Ok(App {
            options,
            forced,
            waker,
            screen,
            events,
            requests,
            outcomes,
            worker,
            input: Input::new(keyboard, pointer),
            serial,
            modifiers: ModifiersState::empty(),
            turned: 0.0,
            model,
            window: None,
            grab: KeyboardGrab::default(),
            captured: false,
            was_captured: false,
            focused: false,
            hold: None,
            at: None,
            over_guest: false,
            wheel_released: false,
            pan: (0.0, 0.0),
            offered: None,
            offer_at: None,
            edge_at: None,
            toolbar_until: None,
            quit_at: None,
            result: Ok(()),
        })
    }

    /// How it ended.
    pub fn into_result(self) -> anyhow::Result<()> {
        self.result
    }

    /// Opens the window with the renderer asked for, or the one that suits the host and then the other.
    fn open(&mut self, event_loop: &ActiveEventLoop, preferred: Option<Renderer>) {
        let first = preferred.or(self.forced).unwrap_or_else(|| view::suitable(event_loop));
        let mut tries = vec![first];
        if self.forced.is_none() && first == Renderer::Pixels {
            tries.push(Renderer::Glow);
        }
        let mode = self.screen.snapshot().map(|(mode, _)| mode);
        let mut failure = None;
        for renderer in tries {
            match ConsoleWindow::open(event_loop, renderer, &self.options, mode, self.waker.proxy.clone()) {
                Ok(window) => {
                    self.model.graphics = window.description();
                    self.window = Some(window);
                    self.watch_serial();
                    self.offer_soon();
                    return;
                }
                Err(e) => failure = Some(e),
            }
        }
        if let Some(e) = failure {
            self.fail(event_loop, e);
        }
    }

    fn fail(&mut self, event_loop: &ActiveEventLoop, error: ViewError) {
        self.close_window();
        self.result = Err(anyhow::Error::new(error).context("the console's window cannot be drawn"));
        event_loop.exit();
    }

    fn close_window(&mut self) {
        self.set_captured(false);
        self.input.lose_focus();
        self.model.dialog = None;
        self.grab.forget();
        self.window = None;
        self.watch_serial();
        self.at = None;
        self.focused = false;
    }

    /// Tells the terminal whether a person looks at it.
    fn watch_serial(&self) {
        if let Some(serial) = &self.serial {
            serial.show(self.window.is_some() && self.model.tab == Tab::Serial);
        }
    }

    /// Shows the guest's screen or its serial port.
    fn show_tab(&mut self, tab: Tab) {
        if self.serial.is_none() || self.model.tab == tab {
            return;
        }
        self.input.release_all();
        self.model.tab = tab;
        self.watch_serial();
        self.over_guest = false;
        self.set_captured(self.model.fullscreen);
        self.offer_soon();
    }

    /// The terminal, while it is what the window shows.
    fn shown_serial(&self) -> Option<&Serial> {
        self.serial.as_ref().filter(|_| self.model.tab == Tab::Serial)
    }

    fn copy(&mut self) {
        let text = self.shown_serial().and_then(|serial| serial.terminal().selected());
        match (text, &mut self.window) {
            (Some(text), Some(window)) => window.set_clipboard(text),
            _ => self.say(Tone::Info, "Nothing is selected"),
        }
    }

    fn paste(&mut self) {
        let Some(text) = self.window.as_mut().and_then(ConsoleWindow::clipboard) else {
            return self.say(Tone::Info, "There is no text in the clipboard");
        };
        if self.shown_serial().is_some_and(|serial| !serial.paste(&text)) {
            self.say(Tone::Error, "The guest does not read what was typed: there is no room for this text");
        }
    }

    fn refresh(&mut self) {
        if let Some(window) = &mut self.window {
            window.refresh();
        }
    }

    fn say(&mut self, tone: Tone, text: impl Into<String>) {
        self.model.notice = Some(Notice { text: text.into(), tone, until: Instant::now() + look::NOTICE });
        self.refresh();
    }

    fn problem(&mut self, text: String) {
        if !self.model.problems.contains(&text) {
            if self.model.problems.len() >= MAX_PROBLEMS {
                self.model.problems.remove(0);
            }
            self.model.problems.push(text);
            self.refresh();
        }
    }

    /// Looks at the screen and every channel.
    fn news(&mut self, event_loop: &ActiveEventLoop) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.on_vm_event(event),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    if self.model.is_alive() {
                        self.on_vm_event(VmEvent::State(Lifecycle::Stopped));
                    }
                    break;
                }
            }
        }
        while let Ok(outcome) = self.outcomes.try_recv() {
            self.on_outcome(outcome);
        }
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Quit => event_loop.exit(),
                Request::Raise => match &self.window {
                    Some(window) => {
                        window.window.set_minimized(false);
                        window.window.focus_window();
                    }
                    None => self.open(event_loop, None),
                },
            }
        }
        self.follow_tablet();
        let typed = self.shown_serial().map(Serial::take_news);
        match (&mut self.window, typed) {
            (Some(window), None) => window.pace.want(),
            (Some(window), Some(true)) => window.refresh(),
            _ => {}
        }
    }

    fn on_vm_event(&mut self, event: VmEvent) {
        match event {
            VmEvent::State(state) => {
                self.model.state = state;
                self.input.set_live(state == Lifecycle::Running);
                if state != Lifecycle::Running && self.hold.is_some() {
                    self.set_captured(false);
                }
                if state == Lifecycle::Running {
                    self.offer_soon();
                }
                if state == Lifecycle::Stopped {
                    self.model.dialog = None;
                    if self.model.problems.is_empty() {
                        self.quit_at = Some(Instant::now() + look::FAREWELL);
                    }
                }
            }
            VmEvent::GuestReset => {
                self.offered = None;
                self.offer_soon();
            }
            VmEvent::Ejected { drive } => {
                if let Some(medium) = self.model.drives.get_mut(drive)
                    && medium.take().is_some()
                {
                    self.say(Tone::Info, "The guest ejected its disc");
                }
            }
            VmEvent::Problem(problem) => {
                let paused = if problem.paused { " The machine is paused, so that nothing is lost." } else { "" };
                self.problem(format!("{}: {}{paused}", problem.source, problem.message));
            }
        }
        self.refresh();
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done(VmCommand::ShutDown) => self.say(Tone::Info, "The guest was asked to shut down"),
            Outcome::Done(VmCommand::ChangeMedium { drive, path }) => {
                if let Some(medium) = self.model.drives.get_mut(drive) {
                    let text = if path.is_some() { "The disc is in the drive" } else { "The disc is out" };
                    *medium = path;
                    self.say(Tone::Good, text);
                }
            }
            // A guest without a driver that listens is no news.
            Outcome::Done(_) | Outcome::Refused(VmCommand::ResizeDisplay { .. }, _) => {}
            Outcome::Refused(_, why) | Outcome::NotTyped(why) | Outcome::Screenshot(Err(why)) => {
                self.say(Tone::Error, why);
            }
            Outcome::Screenshot(Ok(path)) => self.say(Tone::Good, format!("Screenshot saved to {}", path.display())),
            Outcome::Picked(drive, Some(file)) => {
                if let Some(dialog) = &mut self.model.dialog {
                    dialog.picked(drive, file);
                }
            }
            Outcome::Picked(_, None) => {}
            Outcome::Progress(done, total) => {
                if let Some(saving) = &mut self.model.saving {
                    saving.share = (total > 0).then(|| (done as f64 / total as f64).min(1.0) as f32);
                }
            }
            Outcome::Past(Ok(points)) => self.ask(Dialog::timeline(points)),
            Outcome::Past(Err(why)) => self.say(Tone::Error, why),
            Outcome::Saved(what, saved, cancelled) => {
                self.model.saving = None;
                match (saved, what) {
                    (Ok(text), _) if text.is_empty() => {}
                    (Ok(text), _) => self.say(Tone::Good, text),
                    (Err(_), _) if cancelled => self.say(Tone::Info, "Cancelled"),
                    (Err(why), Saving::Lose(loss)) => self.ask(Dialog::lose_anyway(loss, why)),
                    (Err(why), _) => self.problem(format!("It was not done: {why}")),
                }
            }
        }
        self.refresh();
    }

    /// Tells the guest the window's size, once it has settled.
    fn offer_soon(&mut self) {
        self.offer_at = Some(Instant::now() + look::RESIZE_SETTLES);
    }

    fn offer_size(&mut self) {
        let Some(window) = &self.window else { return };
        if !self.model.follow || self.model.view != ViewMode::Scaled || self.model.state != Lifecycle::Running {
            return;
        }
        // Whole character cells of eight, which every guest's mode arithmetic can have exactly.
        let size = (window.area.width as u32 & !7, window.area.height as u32 & !1);
        let same = self.model.mode == Some(Mode { width: size.0, height: size.1 });
        if size.0 < 320 || size.1 < 200 || self.offered == Some(size) || (same && self.offered.is_none()) {
            return;
        }
        self.offered = Some(size);
        self.worker.command(VmCommand::ResizeDisplay { width: size.0, height: size.1 });
    }

    fn act(&mut self, action: Action, event_loop: &ActiveEventLoop) {
        match action {
            Action::TogglePause => match self.model.state {
                Lifecycle::Running => self.worker.command(VmCommand::Pause),
                Lifecycle::Paused => self.worker.command(VmCommand::Resume),
                Lifecycle::Created | Lifecycle::Stopped => {}
            },
            Action::ShutDown => self.worker.command(VmCommand::ShutDown),
            Action::PowerOff => self.lose(Loss::PowerOff),
            Action::Reset => self.lose(Loss::Reset),
            Action::LoseAnyway(loss) => self.worker.command(loss.command()),
            Action::AskPowerOff => self.ask(Dialog::power_off()),
            Action::AskReset => self.ask(Dialog::reset()),
            Action::SendKeys(n) => {
                if let Some(combination) = COMBINATIONS.get(n) {
                    self.input.send_keys(combination);
                }
            }
            Action::ShowScreen => self.show_tab(Tab::Screen),
            Action::ShowSerial => self.show_tab(Tab::Serial),
            Action::Copy => self.copy(),
            Action::Paste => self.paste(),
            Action::TypeClipboard if self.model.tab == Tab::Serial => self.paste(),
            Action::TypeClipboard => match self.window.as_mut().and_then(ConsoleWindow::clipboard) {
                Some(text) => self.worker.type_text(text),
                None => self.say(Tone::Info, "There is no text in the clipboard"),
            },
            Action::Screenshot => match self.screen.snapshot() {
                Some((mode, pixels)) => {
                    let (folder, name) = (self.options.screenshots.clone(), self.model.title.clone());
                    self.worker.screenshot(folder, name, mode, pixels);
                }
                None => self.say(Tone::Info, "The guest's screen is off"),
            },
            Action::ToggleScaled => {
                let other = if self.model.view == ViewMode::Scaled { ViewMode::OneToOne } else { ViewMode::Scaled };
                self.model.view = other;
                self.offer_soon();
            }
            Action::ToggleFollow => {
                self.model.follow = !self.model.follow;
                self.offered = None;
                self.offer_soon();
            }
            Action::FitWindow => {
                if let (Some(window), Some(mode)) = (&self.window, self.model.mode) {
                    window.fit(mode);
                }
            }
            Action::ToggleFullscreen => self.toggle_fullscreen(),
            Action::ShowToolbar => {
                self.set_captured(false);
                self.model.toolbar = true;
                if let Some(window) = &mut self.window {
                    window.focus_toolbar();
                }
            }
            Action::ShowKeys => self.ask(Dialog::keys()),
            Action::ToggleCapture => self.set_captured(!self.captured),
            Action::ChooseMedium(drive) => self.ask(Dialog::medium(drive)),
            Action::Eject(drive) => self.worker.command(VmCommand::ChangeMedium { drive, path: None }),
            Action::Close if self.model.is_alive() => self.ask(Dialog::close()),
            Action::Close => event_loop.exit(),
            Action::KeepRunning => self.close_window(),
            Action::Suspend => self.save(Saving::Suspend, "Suspending"),
            Action::AskSnapshot if self.can_save() => self.ask(Dialog::snapshot()),
            Action::Fork if self.can_save() => self.save(Saving::Fork, "Forking"),
            Action::LookBack if self.can_save() => self.worker.look_back(),
            Action::AskSnapshot | Action::Fork | Action::LookBack => {}
            Action::Cancel => {
                self.worker.cancel();
                if let Some(saving) = &mut self.model.saving {
                    saving.cancelling = true;
                }
            }
        }
        self.refresh();
    }

    /// Whether something that takes time can begin; says why not.
    fn can_save(&mut self) -> bool {
        let why = match (&self.model.saving, self.model.can_save) {
            (Some(saving), _) => format!("{} goes on: wait until it is done", saving.what),
            (None, false) => "This machine is not kept: there is nowhere to save it".into(),
            (None, true) => return self.model.is_alive(),
        };
        self.say(Tone::Info, why);
        false
    }

    fn save(&mut self, saving: Saving, what: impl Into<String>) {
        if self.can_save() {
            let can_cancel = !matches!(saving, Saving::Fork | Saving::KeepTimeline);
            self.model.saving = Some(Progress { what: what.into(), share: None, cancelling: false, can_cancel });
            self.worker.save(saving);
        }
    }

    /// Does what loses something, once the machine's timeline has kept that. It never waits for something else that goes on.
    fn lose(&mut self, loss: Loss) {
        match (&self.model.saving, self.model.can_save) {
            (_, false) => self.worker.command(loss.command()),
            (Some(saving), true) => {
                let why = format!("{} goes on", saving.what);
                self.ask(Dialog::lose_anyway(loss, why));
            }
            (None, true) => self.save(Saving::Lose(loss), "Keeping a checkpoint first"),
        }
    }

    fn ask(&mut self, dialog: Dialog) {
        if self.model.is_alive() {
            self.set_captured(false);
            self.input.release_all();
            self.model.dialog = Some(dialog);
        }
    }

    fn answer(&mut self, ask: Ask, event_loop: &ActiveEventLoop) {
        // What the mouse clicked in the toolbar must not keep the keys from the guest.
        if let (Some(window), None) = (&mut self.window, &self.model.dialog) {
            window.focus_guest();
        }
        match ask {
            Ask::Do(action) => self.act(action, event_loop),
            Ask::Insert(drive, path) => {
                self.worker.command(VmCommand::ChangeMedium { drive, path: Some(path) });
            }
            Ask::Browse(drive) => self.worker.pick_disc(drive),
            Ask::TakeSnapshot(name, note) => {
                let what = format!("Taking the snapshot “{name}”");
                self.save(Saving::Snapshot(name, note), what);
            }
            Ask::Past(saving) => {
                let what = match &saving {
                    Saving::GoBack(_) => "Going back",
                    Saving::Copy(_) => "Opening a copy",
                    _ => "Beginning the timeline",
                };
                self.save(saving, what);
            }
            Ask::DismissProblem(n) => {
                if n < self.model.problems.len() {
                    self.model.problems.remove(n);
                }
            }
            Ask::CloseDialog => {}
        }
        self.refresh();
    }

    fn toggle_fullscreen(&mut self) {
        let Some(window) = &self.window else { return };
        self.model.fullscreen = !self.model.fullscreen;
        self.model.toolbar = false;
        window.window.set_fullscreen(self.model.fullscreen.then_some(Fullscreen::Borderless(None)));
        // Over the whole screen, the whole keyboard is meant for the guest.
        self.set_captured(self.model.fullscreen);
    }

    /// Gives keyboard and pointer to the guest alone, or takes them back.
    fn set_captured(&mut self, capture: bool) {
        let capture = capture && self.input.is_live() && self.focused && self.model.dialog.is_none();
        if self.captured && !capture {
            self.input.release_all();
        }
        let begins = capture && !self.captured;
        self.captured = capture;
        if begins && !self.was_captured {
            self.was_captured = true;
            self.model.banner = Some(Instant::now() + look::BANNER);
        }
        if !capture {
            self.model.banner = None;
        }
        self.hold_pointer();
        if let Some(window) = &self.window {
            self.grab.set(&window.window, capture);
        }
        self.refresh();
    }

    /// Locks or frees the host's pointer, as capture and tablet demand.
    fn hold_pointer(&mut self) {
        let hold = self.captured && !self.input.has_tablet() && self.model.tab == Tab::Screen;
        let Some(window) = &mut self.window else {
            self.hold = None;
            return;
        };
        if hold && self.hold.is_none() {
            let native = &window.window;
            if native.set_cursor_grab(CursorGrabMode::Locked).is_ok() {
                self.hold = Some(Hold::Locked);
            } else if native.set_cursor_grab(CursorGrabMode::Confined).is_ok() {
                let size = native.inner_size();
                let recentring = Recentring::new(size.width, size.height);
                put_pointer(native, recentring.centre());
                self.hold = Some(Hold::Recentred(recentring));
            } else {
                self.captured = false;
                self.say(Tone::Error, "The desktop does not let this window capture the pointer");
                return;
            }
        } else if !hold && self.hold.take().is_some() {
            // A failure means that the window is on its way out, and its grab with it.
            let _ = window.window.set_cursor_grab(CursorGrabMode::None);
        }
        self.show_pointer();
    }

    /// The host's pointer is hidden where the guest shows one of its own.
    fn show_pointer(&mut self) {
        let live = self.input.is_live();
        if let Some(window) = &mut self.window {
            let guests = self.over_guest && live && window.has_guest_cursor();
            window.hide_pointer(self.hold.is_some() || guests);
        }
    }

    /// The guest's driver came or went: from a mouse to a tablet, or back.
    fn follow_tablet(&mut self) {
        let tablet = self.input.has_tablet();
        let state = match (tablet, self.captured) {
            (true, false) => InputState::Absolute,
            (true, true) => InputState::KeyboardCaptured,
            (false, false) => InputState::ClickToCapture,
            (false, true) => InputState::Captured,
        };
        if state != self.model.input {
            self.model.input = state;
            self.hold_pointer();
            self.refresh();
        }
    }

    fn pointer_moved(&mut self, x: f64, y: f64, event: &WindowEvent) {
        match &mut self.hold {
            Some(Hold::Recentred(recentring)) => {
                let step = recentring.moved_to(x, y);
                let centre = recentring.centre();
                if step.warp
                    && let Some(window) = &self.window
                {
                    put_pointer(&window.window, centre);
                }
                self.captured_motion(step.moved.0, step.moved.1);
                return;
            }
            Some(Hold::Locked) => return,
            None => {}
        }
        self.at = Some((x, y));
        let Some(window) = &mut self.window else { return };
        let was_over_guest = self.over_guest;
        self.over_guest = self.input.is_dragging() || !window.overlay_has(&self.model, x, y);
        if self.over_guest {
            if !was_over_guest {
                // Only egui's idea of the pointer leaves.
                if let WindowEvent::CursorMoved { device_id, .. } = event {
                    window.feed(&WindowEvent::CursorLeft { device_id: *device_id });
                }
                window.window.set_cursor(CursorIcon::Default);
            }
            self.guest_pointer(x, y);
        } else {
            window.feed(event);
        }
        self.reveal_toolbar(y);
        self.show_pointer();
    }

    /// The host's pointer is over the guest's picture.
    fn guest_pointer(&mut self, x: f64, y: f64) {
        let Some(window) = &mut self.window else { return };
        if self.model.view == ViewMode::OneToOne {
            let area = window.area;
            let pan = (pan_for(x, area.x, area.width), pan_for(y, area.y, area.height));
            if pan != self.pan {
                self.pan = pan;
                window.pace.want();
            }
        }
        if let Some(placement) = window.placement(&self.model, self.pan)
            && self.input.has_tablet()
        {
            self.input.absolute(placement.to_absolute(x, y));
        }
    }

    fn captured_motion(&mut self, dx: f64, dy: f64) {
        self.input.relative(dx, dy);
        if self.model.view == ViewMode::OneToOne
            && let Some(window) = &mut self.window
        {
            let step = |pan: f64, by: f64, length: f64| (pan + by / length.max(1.0)).clamp(0.0, 1.0);
            let pan = (step(self.pan.0, dx, window.area.width), step(self.pan.1, dy, window.area.height));
            if pan != self.pan {
                self.pan = pan;
                window.pace.want();
            }
        }
    }

    /// In full screen the toolbar comes when the pointer rests on the upper edge, and goes when it has left.
    fn reveal_toolbar(&mut self, y: f64) {
        if !self.model.fullscreen {
            return;
        }
        let now = Instant::now();
        if self.model.toolbar {
            self.toolbar_until = self.over_guest.then(|| self.toolbar_until.unwrap_or(now + look::TOOLBAR_STAYS));
        } else if y < 1.0 && !self.input.is_dragging() {
            self.edge_at.get_or_insert(now + look::EDGE_REST);
        } else {
            self.edge_at = None;
        }
    }

    fn button(&mut self, button: MouseButton, pressed: bool, event: &WindowEvent) {
        let Some(window) = &mut self.window else { return };
        self.input.pointer_used();
        if !self.over_guest && self.hold.is_none() {
            window.feed(event);
            return;
        }
        let Some(button) = guest_button(button) else { return };
        if pressed {
            if window.wants_keyboard(&self.model) {
                window.focus_guest();
            }
            if !self.input.has_tablet() && !self.captured {
                self.set_captured(true);
                // The click that captures is not the guest's.
                return;
            }
        }
        self.input.button(button, pressed);
    }

    fn wheel(&mut self, delta: MouseScrollDelta, event: &WindowEvent) {
        if std::mem::take(&mut self.wheel_released) {
            return;
        }
        if !self.over_guest && self.hold.is_none() {
            self.wheel_of_window(delta, event);
            return;
        }
        match delta {
            MouseScrollDelta::LineDelta(x, y) => self.input.scroll_notches(f64::from(x), f64::from(y)),
            MouseScrollDelta::PixelDelta(by) => self.input.scroll_pixels(by.x, by.y),
        }
    }

    fn wheel_of_window(&mut self, delta: MouseScrollDelta, event: &WindowEvent) {
        let Some(window) = &mut self.window else { return };
        let (Some(serial), true) = (&self.serial, self.at.is_some_and(|(x, y)| window.terminal_has(&self.model, x, y)))
        else {
            window.feed(event);
            return;
        };
        self.turned += match delta {
            MouseScrollDelta::LineDelta(_, y) => f64::from(y) * look::WHEEL_LINES,
            MouseScrollDelta::PixelDelta(by) => by.y / f64::from(size::LINE_HEIGHT),
        };
        let lines = self.turned.trunc();
        self.turned -= lines;
        if lines != 0.0 {
            serial.wheel(lines as i32);
            window.refresh();
        }
    }

    /// A key that went down is the terminal's.
    fn type_key(&mut self, key: &KeyEvent, event_loop: &ActiveEventLoop) {
        let (held, Some(serial)) = (self.modifiers, &self.serial) else { return };
        let typed = match (&key.logical_key, &key.text) {
            // What a dead key and a letter compose.
            (Key::Character(_), Some(text)) if !held.control_key() => Key::Character(text.clone()),
            (key, _) => key.clone(),
        };
        let latin = stroke(key).and_then(|stroke| stroke.character);
        if held == ModifiersState::CONTROL | ModifiersState::SHIFT {
            match latin {
                Some('c') => return self.act(Action::Copy, event_loop),
                Some('v') => return self.act(Action::Paste, event_loop),
                _ => {}
            }
        }
        serial.key(&typed, latin, held);
        self.refresh();
    }

    fn key(&mut self, key: &KeyEvent, event: &WindowEvent, event_loop: &ActiveEventLoop) {
        let Some(window) = &mut self.window else { return };
        let stroke = stroke(key);
        let overlay = window.wants_keyboard(&self.model);
        if self.model.dialog.is_some() && key.state == ElementState::Pressed {
            // In a dialog the right Ctrl key is a Ctrl key.
            window.feed(event);
            return;
        }
        let terminal = self.model.tab == Tab::Serial;
        let effect = stroke.map_or(KeyEffect::None, |stroke| self.input.key(stroke, !overlay && !terminal));
        match effect {
            KeyEffect::None | KeyEffect::Host if overlay => window.feed(event),
            KeyEffect::None if terminal && key.state == ElementState::Pressed => self.type_key(key, event_loop),
            KeyEffect::None | KeyEffect::Host => {}
            KeyEffect::Chord(with) => {
                if let Some(action) = actions::of_chord(with) {
                    self.act(action, event_loop);
                }
            }
            KeyEffect::ToggleCapture => self.set_captured(!self.captured),
            KeyEffect::Release => {
                if self.captured {
                    self.set_captured(false);
                }
            }
        }
    }

    fn draw(&mut self, event_loop: &ActiveEventLoop) {
        let Some(window) = &mut self.window else { return };
        if self.model.tab == Tab::Serial {
            // What changes on the screen adds up until it is shown again.
            self.model.mode = self.screen.mode();
        } else if let Err(e) = window.take_picture(&self.screen, &mut self.model) {
            self.problem(e.to_string());
        }
        self.follow_tablet();
        self.show_pointer();
        let Some(window) = &mut self.window else { return };
        let scale = window.placement(&self.model, self.pan).map(|p| p.scale());
        if scale != self.model.scale {
            self.model.scale = scale;
            window.refresh();
        }
        match window.draw(&mut self.model, self.serial.as_ref(), self.pan, event_loop) {
            Ok(asks) => {
                for ask in asks {
                    self.answer(ask, event_loop);
                }
            }
            Err(e) if window.renderer == Renderer::Pixels => {
                eprintln!("orangery: {e}; going on with OpenGL");
                self.close_window();
                self.open(event_loop, Some(Renderer::Glow));
            }
            Err(e) => self.fail(event_loop, e),
        }
    }

    /// Does what is due, and says when to come back.
    fn timers(&mut self, now: Instant, event_loop: &ActiveEventLoop) -> Option<Instant> {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if due(&mut self.quit_at) {
            event_loop.exit();
        }
        if due(&mut self.offer_at) {
            self.offer_size();
        }
        if due(&mut self.edge_at) {
            self.model.toolbar = true;
            self.refresh();
        }
        if due(&mut self.toolbar_until) {
            let busy = self.window.as_ref().is_some_and(|w| w.wants_keyboard(&self.model));
            self.model.toolbar = busy;
            self.toolbar_until = busy.then(|| now + look::TOOLBAR_STAYS);
            self.refresh();
        }
        let over = self.model.notice.as_ref().is_some_and(|n| n.until <= now);
        if over {
            self.model.notice = None;
            self.refresh();
        }
        if due(&mut self.model.banner) {
            self.refresh();
        }
        let mut next = [self.quit_at, self.offer_at, self.edge_at, self.toolbar_until].into_iter().flatten().min();
        if let Some(window) = &mut self.window {
            let overlay = window.overlay_due(now);
            let mut draw = window.pace.due(now);
            if draw.is_some_and(|at| at <= now) {
                window.window.request_redraw();
                draw = None;
            }
            next = [next, overlay, draw].into_iter().flatten().min();
        }
        next
    }
}

impl ApplicationHandler<Wakeup> for App {
    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        if self.window.is_none() {
            self.open(event_loop, None);
            self.news(event_loop);
        }
    }

    fn user_event(&mut self, event_loop: &ActiveEventLoop, wakeup: Wakeup) {
        match wakeup {
            Wakeup::News => self.news(event_loop),
            Wakeup::Accessibility(event) => {
                if let Some(window) = &mut self.window
                    && window.window.id() == event.window_id
                {
                    window.feed_accesskit(event);
                }
            }
        }
    }

    fn window_event(&mut self, event_loop: &ActiveEventLoop, id: WindowId, event: WindowEvent) {
        let Some(window) = &mut self.window else { return };
        // Events of a window that was closed may still be on their way.
        if window.window.id() != id {
            return;
        }
        match &event {
            WindowEvent::RedrawRequested => self.draw(event_loop),
            WindowEvent::Resized(size) => {
                window.feed(&event);
                window.resized(size.width, size.height);
                self.model.fullscreen = window.window.fullscreen().is_some();
                if let Some(Hold::Recentred(recentring)) = &mut self.hold {
                    *recentring = Recentring::new(size.width, size.height);
                    put_pointer(&window.window, recentring.centre());
                }
                self.offer_soon();
            }
            WindowEvent::CloseRequested => self.act(Action::Close, event_loop),
            WindowEvent::Focused(focused) => {
                self.focused = *focused;
                window.feed(&event);
                if *focused {
                    self.set_captured(self.model.fullscreen);
                } else {
                    self.set_captured(false);
                    self.input.lose_focus();
                }
            }
            WindowEvent::KeyboardInput { event: key, is_synthetic, .. } => {
                // The keys that were already down when the focus came were pressed for another window.
                if !is_synthetic {
                    self.key(key, &event, event_loop);
                }
            }
            WindowEvent::ModifiersChanged(modifiers) => {
                self.modifiers = modifiers.state();
                window.feed(&event);
            }
            WindowEvent::CursorMoved { position, .. } => self.pointer_moved(position.x, position.y, &event),
            WindowEvent::CursorLeft { .. } => {
                self.at = None;
                self.over_guest = self.over_guest && self.input.is_dragging();
                window.feed(&event);
                self.reveal_toolbar(f64::INFINITY);
            }
            WindowEvent::MouseInput { button, state, .. } => {
                self.button(*button, *state == ElementState::Pressed, &event);
            }
            WindowEvent::MouseWheel { delta, .. } => self.wheel(*delta, &event),
            _ => window.feed(&event),
        }
    }

    fn device_event(&mut self, _event_loop: &ActiveEventLoop, _id: DeviceId, event: DeviceEvent) {
        match event {
            DeviceEvent::MouseMotion { delta } if matches!(self.hold, Some(Hold::Locked)) => {
                self.captured_motion(delta.0, delta.1);
            }
            // Under X11 a wheel that is buttons (VNC, XTEST) turns at its press and again at its release; only then does
            // winit tell the button too, and before the turn.
            DeviceEvent::Button { button: 4..=7, state } => self.wheel_released = state == ElementState::Released,
            _ => {}
        }
    }

    fn exiting(&mut self, _event_loop: &ActiveEventLoop) {
        // Everything that hangs on the connection to the display goes before it.
        self.close_window();
    }

    fn about_to_wait(&mut self, event_loop: &ActiveEventLoop) {
        let next = self.timers(Instant::now(), event_loop);
        event_loop.set_control_flow(next.map_or(ControlFlow::Wait, ControlFlow::WaitUntil));
    }
}

fn put_pointer(window: &winit::window::Window, (x, y): (f64, f64)) {
    // Where the window system does not let a window move the pointer, it is locked instead, so this is not reached.
    let _ = window.set_cursor_position(winit::dpi::PhysicalPosition::new(x, y));
}

fn guest_button(button: MouseButton) -> Option<Button> {
    match button {
        MouseButton::Left => Some(Button::Left),
        MouseButton::Right => Some(Button::Right),
        MouseButton::Middle => Some(Button::Middle),
        MouseButton::Back => Some(Button::Side),
        MouseButton::Forward => Some(Button::Extra),
        MouseButton::Other(_) => None,
    }
}

/// A key's stroke; `None` for a key without an evdev code.
fn stroke(key: &KeyEvent) -> Option<Stroke> {
    let code = u16::try_from(key.physical_key.to_scancode()?).ok().filter(|&code| code != 0)?;
    let character = match &key.logical_key {
        Key::Character(text) => {
            let typed = text.chars().next().map(|c| c.to_ascii_lowercase());
            typed.filter(char::is_ascii).or_else(|| us_character(code))
        }
        _ => None,
    };
    Some(Stroke { code, character, pressed: key.state == ElementState::Pressed, repeat: key.repeat })
}
