//! The manager: the window over the library. It holds no machine and may be closed at any time.
//!
//! ```text
//! service (threads) ──Update──▶ Manager::update ──▶ model ──▶ views ──Action──▶ Manager::perform ──Request──▶ service
//! ```
//!
//! Nothing on the frame waits: what takes time is a [`Request`] to a worker of [`service`], and comes back as an
//! [`Update`] with a request to repaint.

mod action;
mod disks;
mod model;
mod picker;
mod service;
mod settings;
mod snapshots;
mod state;
#[cfg(test)]
mod tests;
mod tree;
mod views;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use egui::{Context, Ui};
use vmm_core::backend::disk::Format;
use vmm_core::config::{Boot, DiskConfig};

pub use self::action::Settings;
use self::action::{Action, Command, Power, Purpose, Request, Update, Watch};
use self::model::{Failure, Model, Picture};
use self::picker::{Outcome, Picker};
pub use self::settings::load as kept_settings;
pub(crate) use self::snapshots::picture as snapshot_picture;
use self::state::{Copy, Dialog, Draft, Image, Page, Return, Tab, ViewState, Words, free_name};
use self::views::{Pictures, View};
use crate::jobs::Disk;
use crate::library::NewDisk;
use crate::theme::{self, Appearance, Tone, tokens};

/// What draws the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renderer {
    /// OpenGL: the first choice, and six times cheaper where there is no GPU.
    Glow,
    /// Vulkan.
    Wgpu,
}

impl std::str::FromStr for Renderer {
    type Err = String;
    fn from_str(text: &str) -> Result<Renderer, String> {
        match text {
            "glow" | "gl" => Ok(Renderer::Glow),
            "wgpu" | "vulkan" | "pixels" => Ok(Renderer::Wgpu),
            other => Err(format!("{other:?} is no renderer; choose glow or wgpu")),
        }
    }
}

/// How the manager opens.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The library's folder. `None` is the person's own.
    pub library: Option<PathBuf>,
    /// Forces a renderer. `None` asks the variable ORANGERY_RENDERER, then tries both.
    pub renderer: Option<Renderer>,
    /// A file to open at once, as if it had been dropped on the window.
    pub open: Option<PathBuf>,
}

/// The variable that forces a renderer.
pub const RENDERER_VARIABLE: &str = "ORANGERY_RENDERER";

/// Opens the manager's window and stays until it is closed.
///
/// # Errors
/// There is no display, or no renderer works on it, or the variable names none.
pub fn run(options: Options) -> anyhow::Result<()> {
    let forced = match (options.renderer, std::env::var(RENDERER_VARIABLE)) {
        (Some(renderer), _) => Some(renderer),
        (None, Ok(text)) if !text.is_empty() => {
            Some(text.parse().map_err(|error| anyhow::anyhow!("{RENDERER_VARIABLE}: {error}"))?)
        }
        _ => None,
    };
    let order = match forced {
        Some(renderer) => vec![renderer],
        None => vec![Renderer::Glow, Renderer::Wgpu],
    };
    let mut failures = Vec::new();
    for renderer in order {
        match open_window(&options, renderer) {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{renderer:?}: {error}")),
        }
    }
    anyhow::bail!(
        "could not open the manager's window ({}). It needs a display (DISPLAY or WAYLAND_DISPLAY) with OpenGL 2.1 or \
         Vulkan; the commands of 'orangery --help' work without one",
        failures.join("; ")
    )
}

fn open_window(options: &Options, renderer: Renderer) -> eframe::Result {
    let viewport = egui::ViewportBuilder::default()
        .with_title("Orangery")
        .with_app_id("orangery")
        .with_inner_size(theme::size::WINDOW)
        .with_min_inner_size(theme::size::WINDOW_MIN)
        .with_drag_and_drop(true);
    let native = eframe::NativeOptions {
        viewport,
        renderer: match renderer {
            Renderer::Glow => eframe::Renderer::Glow,
            Renderer::Wgpu => eframe::Renderer::Wgpu,
        },
        ..Default::default()
    };
    let options = options.clone();
    eframe::run_native(
        "orangery",
        native,
        Box::new(move |creation| {
            let ctx = creation.egui_ctx.clone();
            theme::install(&ctx);
            let wake = ctx.clone();
            let (requests, updates) = service::start(options.library, move || wake.request_repaint())?;
            let mut manager = Manager::new(ctx, requests, updates);
            if let Some(path) = options.open {
                manager.perform(Action::Picked(Purpose::Open, path));
            }
            Ok(Box::new(manager))
        }),
    )
}

/// Sends a request to the workers.
pub(crate) type Send = Box<dyn Fn(Request)>;

/// The manager's state and what changes it.
pub(crate) struct Manager {
    ctx: Context,
    model: Model,
    state: ViewState,
    pictures: Pictures,
    /// The selected machine's snapshots', by their ids.
    snapshot_pictures: Pictures,
    send: Send,
    updates: Receiver<Update>,
    watch: Watch,
    shown: Option<(Settings, Option<egui::Theme>)>,
    /// The folder that the picker opens in.
    folder: PathBuf,
    /// A file to make a machine from, once it is known what the host has.
    waiting: Option<PathBuf>,
    /// The window closes whatever goes on.
    closing: bool,
}

impl eframe::App for Manager {
    fn logic(&mut self, _ctx: &Context, _frame: &mut eframe::Frame) {
        self.receive();
    }

    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        self.draw(ui);
    }

    fn clear_color(&self, visuals: &egui::Visuals) -> [f32; 4] {
        theme::tokens(visuals).window.to_normalized_gamma_f32()
    }
}

impl Manager {
    /// A manager that has heard nothing yet.
    pub(crate) fn new(ctx: Context, send: Send, updates: Receiver<Update>) -> Manager {
        let folder = std::env::var_os("HOME").map_or(PathBuf::from("/"), PathBuf::from);
        Manager {
            ctx,
            model: Model::default(),
            state: ViewState::default(),
            pictures: Pictures::default(),
            snapshot_pictures: Pictures::default(),
            send,
            updates,
            watch: Watch::default(),
            shown: None,
            folder,
            waiting: None,
            closing: false,
        }
    }

    /// Takes what the workers have told.
    pub(crate) fn receive(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            self.update(update);
        }
        let shown = (self.state.settings, self.state.desktop);
        if self.shown != Some(shown) {
            self.shown = Some(shown);
            theme::set_appearance(&self.ctx, shown.0.appearance, shown.1);
            self.ctx.set_zoom_factor(shown.0.scale as f32 / 100.0);
        }
        let open = |tab| self.state.tab == tab && self.state.page == Page::Library;
        let watch = Watch {
            selected: self.state.selected.clone(),
            log: open(Tab::Log),
            snapshots: open(Tab::Snapshots) || self.state.dialog.as_ref().is_some_and(Dialog::is_about_snapshots),
        };
        if watch != self.watch {
            self.watch = watch.clone();
            (self.send)(Request::Watch(watch));
        }
    }

    /// Draws the window and does what the person asked for.
    pub(crate) fn draw(&mut self, ui: &mut Ui) {
        if ui.input(|input| input.viewport().close_requested()) {
            self.close_requested();
        }
        let mut actions = self.keys(ui);
        self.state.focused_snapshot = None;
        let mut view = View {
            model: &self.model,
            state: &mut self.state,
            pictures: &self.pictures,
            snapshot_pictures: &self.snapshot_pictures,
            actions: Vec::new(),
        };
        views::show(ui, &mut view);
        actions.append(&mut view.actions);
        if !actions.is_empty() {
            // What an action changed is seen at once, though nothing else asks for a frame.
            ui.ctx().request_repaint();
        }
        for action in actions {
            self.perform(action);
        }
    }

    /// What keys and dropped files ask for.
    fn keys(&mut self, ui: &Ui) -> Vec<Action> {
        let ctx = ui.ctx();
        let mut actions = Vec::new();
        for file in ctx.input(|input| input.raw.dropped_files.clone()) {
            if let Some(path) = file.path {
                actions.push(Action::Picked(Purpose::Open, path));
            }
        }
        if self.state.is_modal() {
            return actions;
        }
        if let Some(focused) = self.state.focused_snapshot.clone() {
            let pressed = |key| ctx.input_mut(|input| input.consume_key(egui::Modifiers::NONE, key));
            let (delete, describe) = (pressed(egui::Key::Delete), pressed(egui::Key::F2));
            // The present is no snapshot: the keys that mean the machine elsewhere mean nothing here.
            if let Some(id) = focused {
                actions.extend(delete.then(|| Action::AskDeleteSnapshot(id.clone())));
                actions.extend(describe.then_some(Action::AskDescribe(id)));
            }
        }
        let typing = ctx.text_edit_focused();
        for command in Command::ALL {
            // While a text is typed, keys without Ctrl belong to it.
            let Some(key) = command.shortcut().filter(|key| !typing || key.modifiers.any()) else { continue };
            if ctx.input_mut(|input| input.consume_shortcut(&key)) {
                actions.push(Action::Command(command));
            }
        }
        // Ctrl and = is Ctrl and + on most keyboards.
        let equals = egui::KeyboardShortcut::new(egui::Modifiers::COMMAND, egui::Key::Equals);
        if ctx.input_mut(|input| input.consume_shortcut(&equals)) {
            actions.push(Action::Command(Command::Larger));
        }
        let nothing_focused = ctx.memory(|memory| memory.focused().is_none());
        if nothing_focused && self.state.page == Page::Library {
            let pressed = |key| ctx.input_mut(|input| input.consume_key(egui::Modifiers::NONE, key));
            if pressed(egui::Key::Enter)
                && let Some(name) = &self.state.selected
            {
                actions.push(Action::Activate(name.clone()));
            }
            for (key, by) in [(egui::Key::ArrowDown, 1), (egui::Key::ArrowUp, -1)] {
                if pressed(key)
                    && let Some(name) = self.neighbour(by)
                {
                    actions.push(Action::Select(name));
                }
            }
        }
        if self.state.page == Page::New && nothing_focused {
            let escape = ctx.input_mut(|input| input.consume_key(egui::Modifiers::NONE, egui::Key::Escape));
            if escape {
                actions.push(Action::Leave);
            }
        }
        actions
    }

    /// The machine `by` rows below the selected one.
    fn neighbour(&self, by: i64) -> Option<String> {
        let names = self.model.names();
        let now = names.iter().position(|name| Some(*name) == self.state.selected.as_deref())?;
        let there = i64::try_from(now).ok()?.checked_add(by)?;
        names.get(usize::try_from(there).ok()?).map(|name| name.to_string())
    }

    /// Takes one thing that a worker tells.
    fn update(&mut self, update: Update) {
        match update {
            Update::Library(folder) => self.model.library = folder,
            Update::Machines(Ok(machines)) => {
                self.model.library_failure = None;
                self.pictures.retain(|name, _| machines.iter().any(|m| m.name == *name && m.state.has_picture()));
                self.model.machines = Some(machines);
                let here = self.state.selected.as_deref().is_some_and(|name| self.model.machine(name).is_some());
                if self.state.edit.as_ref().is_some_and(|edit| self.model.machine(&edit.name).is_none()) {
                    self.state.edit = None;
                }
                if !here {
                    self.state.selected = self.model.names().first().map(|name| name.to_string());
                }
            }
            Update::Machines(Err(failure)) => self.model.library_failure = Some(failure),
            Update::Picture(picture) => self.picture(picture),
            Update::Host(host, checks) => {
                let first = self.model.host.is_none();
                self.model.host = Some(host);
                self.model.checks = checks;
                if first && self.state.page == Page::New {
                    let file = self.waiting.take();
                    self.begin_draft(file);
                }
            }
            Update::Image(path, found) => {
                if let Some(Dialog::Image(Image { looked: Some((looked, facts)), .. })) = &mut self.state.dialog
                    && *looked == path
                {
                    *facts = Some(found);
                }
            }
            Update::Inspected(path, found) => {
                let names = self.model.names();
                if let Some(draft) = &mut self.state.draft {
                    draft.found(&path, found, &names);
                }
            }
            Update::Listed(folder, listing) => {
                if let Some(picker) = &mut self.state.picker {
                    picker.listed(&folder, listing);
                }
            }
            Update::Chosen(purpose, Some(path)) => self.picked(purpose, path),
            Update::Chosen(_, None) => {}
            Update::NoDialog(purpose) => self.open_picker(purpose),
            Update::Created(name) => {
                self.state.draft = None;
                self.state.page = Page::Library;
                self.state.tab = Tab::Overview;
                self.state.selected = Some(name);
            }
            Update::NotCreated(failure) => {
                if let Some(draft) = &mut self.state.draft {
                    draft.making = false;
                }
                self.state.fail(failure);
            }
            Update::Renamed(old, new) => {
                if self.state.selected.as_deref() == Some(&old) {
                    self.state.selected = Some(new);
                }
            }
            Update::Deleted(trashed, what) => {
                let text = format!("{} is in the trash{what}", trashed.name);
                self.state.toast(Tone::Info, text, Some(trashed));
            }
            Update::Saved(name) => {
                self.state.edit = None;
                self.state.toast(Tone::Good, format!("The settings of {name} are saved"), None);
            }
            Update::Notice(text) => self.state.toast(Tone::Good, text, None),
            Update::Failed(failure) => self.state.fail(failure),
            Update::Cancelled(text) => self.state.toast(Tone::Info, text, None),
            Update::Jobs(jobs) => {
                self.model.jobs = jobs;
                if self.state.dialog == Some(Dialog::Quit) && self.model.running_jobs().next().is_none() {
                    // There is nothing left to ask about.
                    self.perform(Action::QuitAnyway);
                }
            }
            Update::Snapshots(snapshots) => self.snapshots(snapshots),
            Update::SnapshotPicture(id, image) => {
                let texture = self.ctx.load_texture(&id, image, egui::TextureOptions::LINEAR);
                self.snapshot_pictures.insert(id, texture);
            }
            Update::Log(log) => self.model.log = log,
            Update::Settings(settings) => self.state.settings = settings,
            Update::Desktop(theme) => self.state.desktop = theme,
        }
    }

    fn snapshots(&mut self, snapshots: model::Snapshots) {
        self.snapshot_pictures.retain(|id, _| snapshots.get(id).is_some());
        if self.state.snapshot.as_deref().is_some_and(|id| snapshots.get(id).is_none()) {
            self.state.snapshot = None;
        }
        let gone = match &self.state.dialog {
            Some(Dialog::DescribeSnapshot(machine, id, _) | Dialog::DeleteSnapshot(machine, id)) => {
                *machine == snapshots.machine && snapshots.get(id).is_none()
            }
            Some(Dialog::RestoreSnapshot(back)) => {
                back.machine == snapshots.machine && snapshots.get(&back.id).is_none()
            }
            Some(Dialog::Clone(Copy { machine, of: Some(id), .. })) => {
                *machine == snapshots.machine && snapshots.get(id).is_none()
            }
            _ => false,
        };
        if gone {
            self.state.dialog = None;
        }
        self.model.snapshots = Some(snapshots);
    }

    /// The window is to be closed: not without a question while jobs go on, which would be given up.
    fn close_requested(&mut self) {
        if !self.closing && self.model.running_jobs().next().is_some() {
            self.ctx.send_viewport_cmd(egui::ViewportCommand::CancelClose);
            self.state.picker = None;
            self.state.dialog = Some(Dialog::Quit);
        }
    }

    fn picture(&mut self, picture: Picture) {
        match picture.image {
            Some(image) => {
                let options = egui::TextureOptions::LINEAR;
                match self.pictures.get_mut(&picture.name) {
                    Some(texture) => texture.set(image, options),
                    None => {
                        let texture = self.ctx.load_texture(&picture.name, image, options);
                        self.pictures.insert(picture.name, texture);
                    }
                }
            }
            None => {
                self.pictures.remove(&picture.name);
            }
        }
    }

    /// Does what a person asked for.
    pub(crate) fn perform(&mut self, action: Action) {
        match action {
            Action::Command(command) => self.command(command),
            Action::Select(name) => {
                self.state.page = Page::Library;
                if self.state.selected.as_deref() != Some(&name) {
                    self.state.selected = Some(name);
                    self.state.edit = None;
                    self.state.snapshot = None;
                }
            }
            Action::Show(tab) => self.show(tab),
            Action::Activate(name) => {
                self.perform(Action::Select(name.clone()));
                match self.model.machine(&name) {
                    Some(machine) if machine.state == model::State::Suspended => self.power(name, Power::Resume),
                    Some(machine) if !machine.state.is_alive() => self.power(name, Power::Start),
                    Some(machine) if !machine.headless => (self.send)(Request::ShowConsole(name)),
                    _ => {}
                }
            }
            Action::Pick(purpose) => (self.send)(Request::AskDesktop(purpose)),
            Action::Picked(purpose, path) => self.picked(purpose, path),
            Action::Eject(drive) => self.change_medium(drive, None),
            Action::Leave => self.leave(),
            Action::Create { start } => {
                // A second click on the button makes no second machine.
                if let Some(draft) = self.state.draft.as_mut().filter(|draft| !draft.making) {
                    draft.making = true;
                    (self.send)(Request::Create { new: draft.new.clone(), start });
                }
            }
            Action::Save => {
                if let Some(edit) = &self.state.edit {
                    (self.send)(Request::Save(edit.name.clone(), edit.config.clone().into(), edit.kept.clone().into()));
                }
            }
            Action::Revert => self.state.edit = None,
            Action::Rename(name, new) => {
                self.state.dialog = None;
                if name != new {
                    (self.send)(Request::Rename(name, new));
                }
            }
            Action::Restore(trashed) => (self.send)(Request::Restore(trashed)),
            Action::Dismiss(index) => {
                if index < self.state.failures.len() {
                    self.state.failures.remove(index);
                }
            }
            Action::Accept(index) => {
                if index < self.state.failures.len()
                    && let Some(offer) = self.state.failures.remove(index).offer
                {
                    (self.send)(offer.request);
                }
            }
            Action::DismissToast(id) => self.state.toasts.retain(|toast| toast.id != id),
            Action::List(folder) => (self.send)(Request::List(folder)),
            Action::AskResetVariables(name) => self.state.dialog = Some(Dialog::ResetVariables(name)),
            Action::ResetVariables(name) => {
                self.state.dialog = None;
                (self.send)(Request::ResetVariables(name));
            }
            Action::Confirm(name, verb) => {
                self.state.dialog = None;
                (self.send)(Request::Power(name, verb));
            }
            Action::LookAt(snapshot) => {
                self.state.reveal_snapshot = self.state.snapshot != snapshot;
                self.state.snapshot = snapshot;
            }
            Action::AskRestore(id) => self.ask_about(id, |_, machine, snapshots, one| {
                let name = free_name(&format!("Before restoring {}", one.name), &snapshots.names());
                let name = if crate::library::name::check(&name).is_ok() { name } else { "The present".into() };
                // What has a timeline keeps the present there by itself, once it is off.
                let keep =
                    machine.state != model::State::Suspended && (snapshots.plan.is_none() || machine.state.is_alive());
                let start = machine.state.is_alive();
                let (machine, id) = (machine.name.clone(), one.id.clone());
                Dialog::RestoreSnapshot(Return { machine, id, keep, name, start })
            }),
            Action::AskDescribe(id) => self.ask_about(id, |_, machine, _, one| {
                let words = Words { name: one.name.clone(), note: one.note.clone() };
                Dialog::DescribeSnapshot(machine.name.clone(), one.id.clone(), words)
            }),
            Action::AskClone(id) => {
                let stem = self.state.selected.clone().unwrap_or_default();
                let name = self.free_name(&stem);
                self.ask_about(id, |_, machine, _, one| {
                    let (machine, of) = (machine.name.clone(), Some(one.id.clone()));
                    // The past is opened to look at it; it needs no room of its own.
                    Dialog::Clone(Copy { machine, of, name, full: false, start: true })
                });
            }
            Action::AskDeleteSnapshot(id) => {
                self.ask_about(id, |_, machine, _, one| Dialog::DeleteSnapshot(machine.name.clone(), one.id.clone()));
            }
            Action::AskGrow(disk) => self.ask_grow(disk),
            Action::AskSwitch(machine, disk, format) => self.state.dialog = Some(Dialog::Switch(machine, disk, format)),
            Action::AskAddDisk(machine) => {
                self.state.dialog = Some(Dialog::AddDisk(machine, self.model.default_disk()));
            }
            Action::AskConvert(from) => {
                let format = Format::Qcow2;
                let to = from.with_extension(format.name()).display().to_string();
                self.state.dialog = Some(Dialog::Convert(from, to, format));
            }
            Action::LookAtImage(path) => self.look_at_image(path),
            Action::Answer(request) => {
                self.state.dialog = None;
                (self.send)(request);
            }
            Action::Cancel(id) => (self.send)(Request::Cancel(id)),
            Action::QuitAnyway => {
                self.closing = true;
                self.ctx.send_viewport_cmd(egui::ViewportCommand::Close);
            }
        }
    }

    /// The first of `stem 1`, `stem 2` and so on that no machine is called.
    fn free_name(&self, stem: &str) -> String {
        let taken = self.model.names();
        let mut names = (1..=taken.len() + 1).map(|number| format!("{stem} {number}"));
        let is_free = |wish: &String| !taken.iter().any(|other| crate::library::name::same(other, wish));
        names.find(is_free).unwrap_or_default()
    }

    /// Opens a dialog about a snapshot of the selected machine, where what is saved of that can be changed.
    fn ask_about(
        &mut self,
        id: String,
        dialog: impl FnOnce(&Model, &model::Machine, &model::Snapshots, &model::Snapshot) -> Dialog,
    ) {
        let selected = self.state.selected.as_deref().unwrap_or_default();
        let (machine, snapshots) = (self.model.machine(selected), self.model.snapshots_of(selected));
        let (Some(machine), Some(snapshots)) = (machine, snapshots) else { return };
        if let Some(one) = snapshots.get(&id)
            && action::change_refusal(&self.model, machine).is_none()
        {
            self.state.dialog = Some(dialog(&self.model, machine, snapshots, one));
        }
    }

    fn look_at_image(&mut self, path: PathBuf) {
        let typed = path.display().to_string();
        self.state.dialog = Some(Dialog::Image(Image { typed, looked: Some((path.clone(), None)) }));
        (self.send)(Request::LookAtImage(path));
    }

    fn ask_grow(&mut self, disk: Disk) {
        let (name, now, kept) = match &disk {
            Disk::Of { machine, disk } => {
                let Some(found) = self.model.machine(machine) else { return };
                let Some(Ok(sizes)) = found.disks.get(*disk).map(|disk| &disk.sizes) else { return };
                (format!("disk {} of {machine}", disk + 1), sizes.guest, found.has_timeline)
            }
            Disk::File(path) => {
                let Some(Dialog::Image(Image { looked: Some((looked, Some(Ok(facts)))), .. })) = &self.state.dialog
                else {
                    return;
                };
                if looked != path {
                    return;
                }
                (views::file_name(path), facts.sizes.guest, false)
            }
        };
        self.state.dialog = Some(Dialog::Grow { disk, name, now, typed: String::new(), kept });
    }

    fn command(&mut self, command: Command) {
        if command.refusal(&self.model, &self.state).is_some() {
            return;
        }
        let selected = self.state.selected.clone();
        match command {
            Command::New => self.begin_draft(None),
            Command::Open => self.perform(Action::Pick(Purpose::Open)),
            Command::Demo => (self.send)(Request::Demo),
            Command::Quit => self.ctx.send_viewport_cmd(egui::ViewportCommand::Close),
            Command::LookDesktop => self.set(Settings { appearance: Appearance::Desktop, ..self.state.settings }),
            Command::LookDark => self.set(Settings { appearance: Appearance::Dark, ..self.state.settings }),
            Command::LookLight => self.set(Settings { appearance: Appearance::Light, ..self.state.settings }),
            Command::Larger => self.scale(tokens::SCALES.into_iter().find(|&s| s > self.state.settings.scale)),
            Command::Smaller => self.scale(tokens::SCALES.into_iter().rev().find(|&s| s < self.state.settings.scale)),
            Command::NormalSize => self.scale(Some(100)),
            Command::Search => {
                self.state.page = Page::Library;
                self.state.focus_search = true;
            }
            Command::TakeSnapshot => {
                if let Some(name) = selected {
                    let taken = self.model.snapshots_of(&name).map(model::Snapshots::names).unwrap_or_default();
                    let words = Words { name: free_name("Snapshot", &taken), note: String::new() };
                    self.state.dialog = Some(Dialog::TakeSnapshot(name, words));
                }
            }
            Command::Fork => {
                if let Some(name) = selected {
                    let fork = self.free_name(&name);
                    self.state.dialog = Some(Dialog::Fork(name, fork));
                }
            }
            Command::Clone => {
                if let Some(machine) = selected {
                    let name = self.free_name(&machine);
                    let copy = Copy { machine, of: None, name, full: true, start: false };
                    self.state.dialog = Some(Dialog::Clone(copy));
                }
            }
            Command::Timeline => {
                if let Some(name) = selected {
                    let plan = self.model.snapshots_of(&name).and_then(|snapshots| snapshots.plan);
                    self.state.dialog = Some(Dialog::Timeline(name, plan.is_some(), plan.unwrap_or_default()));
                }
            }
            Command::DiskImages => self.state.dialog = Some(Dialog::Image(Image::default())),
            Command::Jobs => self.state.dialog = Some(Dialog::Jobs),
            Command::Settings => self.show(Tab::Hardware),
            Command::CheckHost => (self.send)(Request::CheckHost { tell: true }),
            Command::Keys => self.state.dialog = Some(Dialog::Keys),
            Command::About => self.state.dialog = Some(Dialog::About),
            Command::Console => {
                if let Some(name) = selected {
                    (self.send)(Request::ShowConsole(name));
                }
            }
            Command::Rename => {
                self.state.dialog = selected.map(|name| Dialog::Rename(name.clone(), name));
            }
            Command::Delete => {
                if let Some(name) = selected {
                    (self.send)(Request::Delete(name));
                }
            }
            Command::Start
            | Command::StartUnsaved
            | Command::ShutDown
            | Command::Pause
            | Command::Suspend
            | Command::Resume
            | Command::PowerOff
            | Command::Reset => {
                if let (Some(name), Some(verb)) = (selected, command.power()) {
                    self.power(name, verb);
                }
            }
        }
    }

    /// Does a power verb; one that loses something is asked about first.
    fn power(&mut self, name: String, verb: Power) {
        let refused = self.model.machine(&name).is_none_or(|machine| verb.refusal(machine.state).is_some());
        // What is being done to its files needs them.
        let at_rest = self.model.machine(&name).is_some_and(|machine| !machine.state.is_alive());
        let refused = refused || at_rest && self.model.job_of(&name).is_some();
        match verb {
            _ if refused => {}
            Power::Off | Power::Reset => self.state.dialog = Some(Dialog::Confirm(name, verb)),
            _ => (self.send)(Request::Power(name, verb)),
        }
    }

    fn show(&mut self, tab: Tab) {
        self.state.tab = tab;
        if tab == Tab::Hardware {
            // What is free on the host has changed since it was last looked at.
            (self.send)(Request::CheckHost { tell: false });
        }
    }

    fn set(&mut self, settings: Settings) {
        self.state.settings = settings;
        (self.send)(Request::Keep(settings));
    }

    fn scale(&mut self, scale: Option<u32>) {
        if let Some(scale) = scale {
            self.set(Settings { scale, ..self.state.settings });
        }
    }

    fn leave(&mut self) {
        if self.state.picker.take().is_some() || self.state.dialog.take().is_some() {
            return;
        }
        self.state.page = Page::Library;
        self.state.draft = None;
    }

    /// Opens the page of a new machine, perhaps with a file to make it from.
    fn begin_draft(&mut self, file: Option<PathBuf>) {
        self.state.page = Page::New;
        let Some(host) = &self.model.host else {
            self.waiting = file;
            return;
        };
        (self.send)(Request::CheckHost { tell: false });
        let mut draft = Draft::new(host, &self.model.names());
        if let Some(path) = file {
            draft.look_at(path.clone());
            (self.send)(Request::Inspect(path));
        }
        self.state.draft = Some(draft);
    }

    fn open_picker(&mut self, purpose: Purpose) {
        let (picker, outcome) = Picker::open(purpose, &self.folder);
        self.state.picker = Some(picker);
        if let Outcome::List(folder) = outcome {
            (self.send)(Request::List(folder));
        }
    }

    /// A file was chosen for something.
    fn picked(&mut self, purpose: Purpose, path: PathBuf) {
        self.state.picker = None;
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            self.folder = folder.to_path_buf();
        }
        if purpose == Purpose::Image {
            return self.look_at_image(path);
        }
        let making = self.state.page == Page::New;
        let draft = self.state.draft.as_mut().filter(|_| making);
        let edit = self.state.edit.as_mut().filter(|_| !making);
        let boot = match (draft, edit) {
            (Some(draft), _) => match purpose {
                Purpose::Open => {
                    draft.look_at(path.clone());
                    return (self.send)(Request::Inspect(path));
                }
                Purpose::Medium(drive) => {
                    if let Some(medium) = draft.new.cdroms.get_mut(drive) {
                        *medium = Some(path);
                    }
                    return;
                }
                Purpose::Disk(index) => {
                    let readonly = false;
                    match draft.new.disks.get_mut(index) {
                        Some(disk) => *disk = NewDisk::Existing { path, readonly, bus: disk.bus() },
                        None => draft.new.disks.push(NewDisk::existing(path, readonly)),
                    }
                    return;
                }
                Purpose::Kernel | Purpose::Initrd => Some(&mut draft.new.boot),
                Purpose::Image => None,
            },
            (None, Some(edit)) if purpose != Purpose::Open => match purpose {
                Purpose::Open | Purpose::Image => None,
                Purpose::Medium(drive) => return self.change_medium(drive, Some(path)),
                Purpose::Disk(index) => {
                    match edit.config.disks.get_mut(index) {
                        Some(disk) => disk.path = path,
                        None => edit.config.disks.push(DiskConfig::new(path)),
                    }
                    return;
                }
                Purpose::Kernel | Purpose::Initrd => Some(&mut edit.config.boot),
            },
            _ => return self.begin_draft(Some(path)),
        };
        if let Some(Boot::Kernel { kernel, initrd, .. }) = boot {
            match purpose {
                Purpose::Kernel => *kernel = path,
                _ => *initrd = Some(path),
            }
        }
    }

    /// Changes a drive's medium: of the running machine at once, of a stopped one in its edited settings.
    fn change_medium(&mut self, drive: usize, path: Option<PathBuf>) {
        let Some(name) = self.state.selected.clone() else { return };
        if self.model.machine(&name).is_some_and(|machine| machine.state.is_alive()) {
            return (self.send)(Request::ChangeMedium(name, drive, path));
        }
        let medium = self.state.edit.as_mut().and_then(|edit| edit.config.cdroms.get_mut(drive));
        if let Some(medium) = medium {
            medium.path = path;
        }
    }
}

impl From<Failure> for Update {
    fn from(failure: Failure) -> Update {
        Update::Failed(failure)
    }
}
