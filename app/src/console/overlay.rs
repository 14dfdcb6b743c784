//! What egui draws around and over the guest's picture: toolbar, status bar, problems, notices. Views of a [`Model`]
//! that answer with what the person asks for; they do nothing themselves.

use std::path::PathBuf;
use std::time::Instant;

use egui::containers::menu::SubMenuButton;
use egui::{Align, Align2, Area, Button, Frame, Id, Layout, Margin, Order, Panel, Popup, Rect, RichText, Ui};
use egui::{WidgetInfo, WidgetType, pos2, vec2};
use egui_phosphor::regular as icon;
use vmm_core::backend::display::Mode;
use vmm_core::vm::Lifecycle;

use super::Saving;
use super::actions::{Action, COMBINATIONS, CTRL_ALT_F1};
use super::dialogs::Dialog;
use super::look;
use super::serial::view::{self as serial_view, Wish};
use super::serial::{Size, Terminal};
use super::transform::ViewMode;
use crate::theme::{Shape, Tone, UiExt, size};

/// What the person did with a control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// One of the actions.
    Do(Action),
    /// Put this disc image in a drive.
    Insert(usize, PathBuf),
    /// Show the desktop's file dialog for a drive.
    Browse(usize),
    /// Take a snapshot with this name and this note.
    TakeSnapshot(String, String),
    /// Do this with the machine's past.
    Past(Saving),
    /// The problem at this place was read.
    DismissProblem(usize),
    /// The dialog is over.
    CloseDialog,
}

/// Where keys and pointer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputState {
    /// The guest has a tablet: the pointer goes in and out by itself.
    Absolute,
    /// The same, and the desktop's shortcuts go to the guest too.
    KeyboardCaptured,
    /// The guest has a mouse: it needs a capture.
    ClickToCapture,
    /// The guest has the keyboard and the pointer.
    Captured,
}

impl InputState {
    fn word(self) -> &'static str {
        match self {
            InputState::Absolute => "Absolute pointer",
            InputState::KeyboardCaptured => "Keyboard captured",
            InputState::ClickToCapture => "Click to capture",
            InputState::Captured => "Captured",
        }
    }

    fn is_captured(self) -> bool {
        matches!(self, InputState::KeyboardCaptured | InputState::Captured)
    }
}

/// What the window shows of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// The guest's screen.
    Screen,
    /// Its serial port, as a terminal.
    Serial,
}

/// A message that goes away by itself.
#[derive(Debug, Clone)]
pub struct Notice {
    /// What it says.
    pub text: String,
    /// Whether it is bad news.
    pub tone: Tone,
    /// When it goes.
    pub until: Instant,
}

/// How far something that takes time is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What it is.
    pub what: String,
    /// How much of it is done, 0 to 1; `None` while that is not known.
    pub share: Option<f32>,
    /// It is being given up.
    pub cancelling: bool,
    /// It can be.
    pub can_cancel: bool,
}

/// All that the overlay shows.
#[derive(Debug, Clone)]
pub struct Model {
    /// The machine's name.
    pub title: String,
    /// What the machine does.
    pub state: Lifecycle,
    /// See [`Tab`].
    pub tab: Tab,
    /// The terminal's size; `None` while it was not shown yet.
    pub terminal: Option<Size>,
    /// The guest's screen; `None` when it is off.
    pub mode: Option<Mode>,
    /// Window pixels for a guest pixel.
    pub scale: Option<f64>,
    /// See [`InputState`].
    pub input: InputState,
    /// Scaled or 1:1.
    pub view: ViewMode,
    /// The window's size is offered to the guest.
    pub follow: bool,
    /// Over the whole screen.
    pub fullscreen: bool,
    /// The toolbar is to be seen in full screen.
    pub toolbar: bool,
    /// The medium in each CD-ROM drive.
    pub drives: Vec<Option<PathBuf>>,
    /// What went wrong, sentences.
    pub problems: Vec<String>,
    /// What there is to say.
    pub notice: Option<Notice>,
    /// The banner of the first capture is up until then.
    pub banner: Option<Instant>,
    /// The dialog that is open.
    pub dialog: Option<Dialog>,
    /// The machine can go on without a window.
    pub can_keep_running: bool,
    /// The machine is kept: it can be saved.
    pub can_save: bool,
    /// What takes time and goes on.
    pub saving: Option<Progress>,
    /// What draws the window, as the graphics call it.
    pub graphics: String,
}

impl Model {
    /// Whether the machine can be commanded.
    pub fn is_alive(&self) -> bool {
        self.state != Lifecycle::Stopped
    }
}

/// What one pass over the overlay gave.
#[derive(Debug, Default)]
pub struct Pass {
    /// What the person asked for.
    pub asks: Vec<Ask>,
    /// What is left for the guest's picture, points; nothing while the terminal has it.
    pub area: Option<Rect>,
    /// Where the terminal is, points.
    pub terminal: Option<Rect>,
    /// What lies over the guest's picture and wants the pointer, points.
    pub floats: Vec<Rect>,
}

/// Draws everything. `terminal` is the machine's, if it has one; `focus_toolbar` gives the toolbar the keyboard.
pub fn show(
    ui: &mut Ui,
    model: &mut Model,
    mut terminal: Option<&mut Terminal>,
    focus_toolbar: bool,
    now: Instant,
) -> Pass {
    let mut pass = Pass::default();
    if !model.fullscreen {
        let frame = Frame::new().fill(ui.tokens().panel).inner_margin(Margin::symmetric(size::GAP as i8, 0));
        Panel::top("toolbar").exact_size(look::TOOLBAR).frame(frame).show_separator_line(true).show(ui, |ui| {
            toolbar(ui, model, terminal.is_some(), focus_toolbar, &mut pass.asks);
        });
        Panel::bottom("status").exact_size(look::STATUS).frame(frame).show_separator_line(true).show(ui, |ui| {
            status(ui, model);
        });
    }
    let area = ui.available_rect_before_wrap();
    let has_terminal = terminal.is_some();
    match &mut terminal {
        Some(terminal) if model.tab == Tab::Serial => {
            pass.terminal = Some(area);
            let wish = serial_view::show(ui, area, terminal);
            pass.asks.extend(wish.map(|wish| match wish {
                Wish::Copy => Ask::Do(Action::Copy),
                Wish::Paste => Ask::Do(Action::Paste),
            }));
            let size = Some(terminal.size());
            if std::mem::replace(&mut model.terminal, size) != size {
                // The status bar, which tells it, was drawn before.
                ui.ctx().request_repaint();
            }
        }
        _ => {
            pass.area = Some(area);
            veil(ui, area, model, &mut pass);
        }
    }
    problems(ui, area, model, &mut pass);
    if model.fullscreen && model.toolbar {
        floating_toolbar(ui, model, has_terminal, focus_toolbar, &mut pass);
    }
    saving(ui, area, model, &mut pass);
    messages(ui, area, model, now);
    if let Some(mut dialog) = model.dialog.take() {
        let keep = dialog.show(ui, model, &mut pass.asks);
        model.dialog = keep.then_some(dialog);
    }
    pass
}

/// Whether a menu, a dialog or a control with the focus wants the keys.
pub fn wants_keyboard(ctx: &egui::Context, model: &Model) -> bool {
    let control = ctx.memory(|m| m.focused().is_some_and(|id| id != serial_view::id()));
    model.dialog.is_some() || Popup::is_any_open(ctx) || control
}

/// Whether a menu or a dialog wants the pointer wherever it is.
pub fn wants_pointer(ctx: &egui::Context, model: &Model) -> bool {
    model.dialog.is_some() || Popup::is_any_open(ctx)
}

fn toolbar(ui: &mut Ui, model: &Model, has_terminal: bool, focus: bool, asks: &mut Vec<Ask>) {
    let compact = ui.available_width() < look::WIDE;
    let alive = model.is_alive();
    ui.horizontal_centered(|ui| {
        ui.spacing_mut().item_spacing.x = size::GAP_SMALL;
        let (sign, word) =
            if model.state == Lifecycle::Paused { (icon::PLAY, "Resume") } else { (icon::PAUSE, "Pause") };
        let pausable = matches!(model.state, Lifecycle::Running | Lifecycle::Paused);
        let pause = bar_button(ui, compact, pausable, sign, word, Action::TogglePause);
        if focus {
            pause.request_focus();
        }
        if pause.clicked() {
            asks.push(Ask::Do(Action::TogglePause));
        }
        menu(ui, compact, alive, icon::POWER, "Power", |ui| power_menu(ui, model, asks));
        let savable = alive && model.can_save && model.saving.is_none();
        for (action, word) in
            [(Action::AskSnapshot, "Snapshot"), (Action::LookBack, "Timeline"), (Action::Fork, "Fork")]
        {
            if bar_button(ui, compact, savable, action.icon(), word, action).clicked() {
                asks.push(Ask::Do(action));
            }
        }
        ui.separator();
        menu(ui, compact, alive, icon::KEYBOARD, "Send keys", |ui| keys_menu(ui, asks));
        if !model.drives.is_empty() {
            menu(ui, compact, alive, icon::DISC, "CD", |ui| drives_menu(ui, model, asks));
        }
        let shot = bar_button(ui, compact, model.mode.is_some(), icon::CAMERA, "Screenshot", Action::Screenshot);
        if shot.clicked() {
            asks.push(Ask::Do(Action::Screenshot));
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let (sign, word) = if model.fullscreen {
                (icon::CORNERS_IN, "Leave full screen")
            } else {
                (icon::CORNERS_OUT, "Full screen")
            };
            if bar_button(ui, compact, true, sign, word, Action::ToggleFullscreen).clicked() {
                asks.push(Ask::Do(Action::ToggleFullscreen));
            }
            menu(ui, compact, true, icon::FRAME_CORNERS, "View", |ui| view_menu(ui, model, asks));
            if has_terminal {
                ui.separator();
                ui.add_space(size::GAP);
                // From the right to the left.
                tab(ui, model, Tab::Serial, "Serial", Action::ShowSerial, asks);
                ui.add_space(size::GAP);
                tab(ui, model, Tab::Screen, "Screen", Action::ShowScreen, asks);
            }
        });
    });
}

/// A tab of the toolbar; its tooltip names the chord.
fn tab(ui: &mut Ui, model: &Model, tab: Tab, word: &str, action: Action, asks: &mut Vec<Ask>) {
    let tip = action.chord().map_or_else(|| word.to_string(), |chord| format!("{} ({chord})", action.label()));
    if ui.tab(model.tab == tab, word).on_hover_text(tip).clicked() {
        asks.push(Ask::Do(action));
    }
}

/// A button of the toolbar; its tooltip names the chord.
fn bar_button(ui: &mut Ui, compact: bool, enabled: bool, sign: &str, word: &str, action: Action) -> egui::Response {
    let button = if compact { Button::new(sign) } else { Button::new((sign, word)) };
    let button = button.frame_when_inactive(false).min_size(vec2(size::CONTROL, size::CONTROL));
    let response = ui.scope(|ui| {
        ui.spacing_mut().button_padding.x = size::GAP;
        ui.add_enabled(enabled, button)
    });
    let response = response.inner;
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Button, enabled, word));
    let tip = action.chord().map_or_else(|| word.to_string(), |chord| format!("{word} ({chord})"));
    response.on_hover_text(tip)
}

/// A menu of the toolbar.
fn menu(ui: &mut Ui, compact: bool, enabled: bool, sign: &str, word: &str, items: impl FnOnce(&mut Ui)) {
    let caret = RichText::new(icon::CARET_DOWN).size(size::TEXT_SMALL);
    let button = if compact { Button::new((sign, caret)) } else { Button::new((sign, word, caret)) };
    let button = button.frame_when_inactive(false).min_size(vec2(size::CONTROL, size::CONTROL));
    let response = ui.scope(|ui| {
        ui.spacing_mut().button_padding.x = size::GAP;
        ui.add_enabled(enabled, button)
    });
    let response = response.inner;
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Button, enabled, format!("{word} menu")));
    Popup::menu(&response).show(|ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        items(ui);
    });
    if compact && !Popup::is_any_open(ui.ctx()) {
        response.on_hover_text(word);
    }
}

/// A line of a menu, its chord at the right.
fn item(ui: &mut Ui, action: Action, label: &str, asks: &mut Vec<Ask>) {
    if menu_line(ui, true, action.icon(), label, action.chord()).clicked() {
        asks.push(Ask::Do(action));
    }
}

fn menu_line(ui: &mut Ui, enabled: bool, sign: &str, label: &str, chord: Option<&str>) -> egui::Response {
    let button = if sign.is_empty() { Button::new(label) } else { Button::new((sign, label)) };
    let mut button = button.frame_when_inactive(false).min_size(vec2(look::MENU, size::CONTROL));
    if let Some(chord) = chord {
        button = button.shortcut_text(chord);
    }
    let response = ui.add_enabled(enabled, button);
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Button, enabled, label));
    response
}

fn power_menu(ui: &mut Ui, model: &Model, asks: &mut Vec<Ask>) {
    if model.can_save {
        item(ui, Action::Suspend, "Suspend", asks);
    }
    item(ui, Action::ShutDown, "Shut down", asks);
    ui.separator();
    item(ui, Action::AskReset, "Reset…", asks);
    item(ui, Action::AskPowerOff, "Power off…", asks);
}

fn keys_menu(ui: &mut Ui, asks: &mut Vec<Ask>) {
    let line = |ui: &mut Ui, n: usize, asks: &mut Vec<Ask>| {
        let action = Action::SendKeys(n);
        if menu_line(ui, true, "", action.label(), action.chord()).clicked() {
            asks.push(Ask::Do(action));
        }
    };
    for n in 0..CTRL_ALT_F1 {
        line(ui, n, asks);
    }
    ui.separator();
    let submenu = Button::new("Ctrl+Alt+F1 to F12").frame_when_inactive(false).right_text(icon::CARET_RIGHT);
    let submenu = submenu.min_size(vec2(look::MENU, size::CONTROL));
    SubMenuButton::from_button(submenu).ui(ui, |ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        for n in CTRL_ALT_F1..COMBINATIONS.len() {
            line(ui, n, asks);
        }
    });
    ui.separator();
    item(ui, Action::TypeClipboard, "Type the clipboard", asks);
}

fn drives_menu(ui: &mut Ui, model: &Model, asks: &mut Vec<Ask>) {
    for (n, medium) in model.drives.iter().enumerate() {
        if n > 0 {
            ui.separator();
        }
        let name = medium.as_ref().map_or("Empty".into(), |path| file_name(path));
        let name = if model.drives.len() > 1 { format!("CD {}: {name}", n + 1) } else { name };
        ui.horizontal(|ui| {
            ui.add_space(size::GAP_SMALL);
            ui.add(egui::Label::new(RichText::new(name).color(ui.tokens().text_muted)).truncate());
        });
        item(ui, Action::ChooseMedium(n), "Insert disc image…", asks);
        let eject = menu_line(ui, medium.is_some(), icon::EJECT, "Eject", None);
        if eject.clicked() {
            asks.push(Ask::Do(Action::Eject(n)));
        }
    }
}

/// As wide as a tick: an em space, and every icon is an em wide.
const NO_TICK: &str = "\u{2003}";

fn view_menu(ui: &mut Ui, model: &Model, asks: &mut Vec<Ask>) {
    let tick = |on: bool| if on { icon::CHECK } else { NO_TICK };
    let scaled = model.view == ViewMode::Scaled;
    let chord = Action::ToggleScaled.chord();
    if menu_line(ui, true, tick(scaled), "Scaled", chord).clicked() && !scaled {
        asks.push(Ask::Do(Action::ToggleScaled));
    }
    if menu_line(ui, true, tick(!scaled), "1:1", chord).clicked() && scaled {
        asks.push(Ask::Do(Action::ToggleScaled));
    }
    ui.separator();
    if menu_line(ui, scaled, tick(model.follow), Action::ToggleFollow.label(), None).clicked() {
        asks.push(Ask::Do(Action::ToggleFollow));
    }
    let fits = model.mode.is_some() && !model.fullscreen;
    if menu_line(ui, fits, NO_TICK, Action::FitWindow.label(), None).clicked() {
        asks.push(Ask::Do(Action::FitWindow));
    }
    ui.separator();
    item(ui, Action::ShowKeys, "All keys", asks);
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn status(ui: &mut Ui, model: &Model) {
    let t = ui.tokens();
    // Nothing here is a control, so nothing needs a control's height.
    ui.spacing_mut().interact_size.y = ui.available_height();
    ui.horizontal_centered(|ui| {
        ui.style_mut().override_text_style = Some(egui::TextStyle::Small);
        ui.spacing_mut().item_spacing.x = size::GAP_LARGE;
        let (shape, color) = match model.state {
            Lifecycle::Created => (Shape::Spinner, t.text_muted),
            Lifecycle::Running => (Shape::Triangle, t.running),
            Lifecycle::Paused => (Shape::Bars, t.paused),
            Lifecycle::Stopped => (Shape::Square, t.stopped),
        };
        ui.state_sign(shape, color, capital(model.state.word()).as_str());
        let narrow = ui.available_width() < look::WINDOW_MIN.0 as f32;
        let screen = match (model.mode, model.scale) {
            _ if model.tab == Tab::Serial => {
                model.terminal.map_or_else(String::new, |size| format!("{} × {} characters", size.columns, size.lines))
            }
            (Some(mode), Some(scale)) if (scale - 1.0).abs() > 0.004 => {
                format!("{} × {}  ·  {:.0} %", mode.width, mode.height, scale * 100.0)
            }
            (Some(mode), _) => format!("{} × {}", mode.width, mode.height),
            (None, _) => "Screen off".into(),
        };
        ui.add(egui::Label::new(RichText::new(screen).color(t.text_muted)).truncate());
        if model.tab == Tab::Serial {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let hint = "Ctrl+Shift+C copies, Ctrl+Shift+V pastes";
                ui.add(egui::Label::new(RichText::new(hint).color(t.text_muted)).truncate());
            });
        } else if model.is_alive() {
            let color = if model.input.is_captured() { t.accent_text } else { t.text_muted };
            let sign = if model.input == InputState::KeyboardCaptured { icon::KEYBOARD } else { icon::MOUSE };
            let text = format!("{sign} {}", model.input.word());
            let response = ui.add(egui::Label::new(RichText::new(text).color(color)).truncate());
            response.widget_info(|| WidgetInfo::labeled(WidgetType::Label, true, model.input.word()));
            let hint = match (narrow, model.input.is_captured()) {
                (true, _) => return,
                (false, true) => "Right Ctrl releases",
                (false, false) => "Right Ctrl+? for all keys",
            };
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                ui.add(egui::Label::new(RichText::new(hint).color(t.text_muted)).truncate());
            });
        }
    });
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The most problems shown one above the other; older ones wait below.
const PROBLEMS_SHOWN: usize = 3;

/// Problems lie over the picture: a bar that took room would make the guest change its mode.
fn problems(ui: &Ui, area: Rect, model: &Model, pass: &mut Pass) {
    let t = ui.tokens();
    if model.problems.is_empty() {
        return;
    }
    let below = if model.fullscreen && model.toolbar { look::TOOLBAR } else { 0.0 };
    let at = area.left_top() + vec2(0.0, below);
    let float = Area::new(Id::new("problems")).order(Order::Middle).fixed_pos(at).show(ui.ctx(), |ui| {
        ui.set_width(area.width());
        ui.spacing_mut().item_spacing.y = size::LINE;
        for (n, text) in model.problems.iter().enumerate().rev().take(PROBLEMS_SHOWN) {
            let frame = Frame::new().fill(t.error_surface).inner_margin(Margin::symmetric(12, size::GAP_SMALL as i8));
            frame.show(ui, |ui| problem(ui, n, text, &mut pass.asks));
        }
    });
    pass.floats.push(float.response.rect);
}

fn problem(ui: &mut Ui, n: usize, text: &str, asks: &mut Vec<Ask>) {
    let color = ui.tokens().error;
    ui.with_layout(Layout::right_to_left(Align::TOP), |ui| {
        if ui.icon_button(icon::X, "Dismiss").clicked() {
            asks.push(Ask::DismissProblem(n));
        }
        ui.with_layout(Layout::left_to_right(Align::TOP), |ui| {
            ui.horizontal(|ui| ui.label(RichText::new(icon::WARNING_CIRCLE).size(18.0).color(color)));
            ui.vertical(|ui| {
                ui.add_space(6.0);
                ui.add(egui::Label::new(text).wrap().selectable(true));
                ui.add_space(6.0);
            });
        });
    });
}

/// What lies over a picture that does not move, or stands where there is none.
fn veil(ui: &mut Ui, area: Rect, model: &Model, pass: &mut Pass) {
    let t = ui.tokens();
    let (sign, text) = match (model.state, model.mode) {
        (Lifecycle::Running, Some(_)) => return,
        (Lifecycle::Running, None) => (icon::MONITOR, "The guest's screen is off"),
        (Lifecycle::Created, _) => (icon::POWER, "Starting"),
        (Lifecycle::Paused, _) => (icon::PAUSE, "Paused"),
        (Lifecycle::Stopped, _) => (icon::POWER, "Stopped"),
    };
    if model.mode.is_some() {
        ui.painter().rect_filled(area, 0.0, t.backdrop);
    }
    let float = Area::new(Id::new("veil"))
        .order(Order::Middle)
        .anchor(Align2::CENTER_CENTER, area.center() - ui.ctx().content_rect().center())
        .show(ui.ctx(), |ui| {
            Frame::new().fill(t.surface).corner_radius(size::RADIUS_LARGE).inner_margin(12).show(ui, |ui| {
                ui.horizontal(|ui| {
                    ui.spacing_mut().item_spacing.x = size::GAP;
                    ui.label(RichText::new(sign).size(size::ICON_LARGE).color(t.text_muted));
                    ui.strong_text(text);
                    let resume = model.state == Lifecycle::Paused;
                    if resume && ui.tool_button(Tone::Good, icon::PLAY, "Resume", None).clicked() {
                        pass.asks.push(Ask::Do(Action::TogglePause));
                    }
                    let over = model.state == Lifecycle::Stopped && !model.problems.is_empty();
                    if over && ui.tool_button(Tone::Info, "", "Close", None).clicked() {
                        pass.asks.push(Ask::Do(Action::Close));
                    }
                });
            });
        });
    pass.floats.push(float.response.rect);
}

fn floating_toolbar(ui: &mut Ui, model: &Model, has_terminal: bool, focus: bool, pass: &mut Pass) {
    let t = ui.tokens();
    let screen = ui.ctx().content_rect();
    let width = (screen.width() - 2.0 * size::GAP_PAGE).min(900.0);
    let at = pos2(screen.center().x - width / 2.0, screen.top());
    let float = Area::new(Id::new("floating toolbar")).order(Order::Middle).fixed_pos(at).show(ui.ctx(), |ui| {
        let radius = egui::CornerRadius { sw: size::RADIUS_LARGE, se: size::RADIUS_LARGE, ..Default::default() };
        let frame = Frame::new().fill(t.panel).stroke((size::LINE, t.border)).corner_radius(radius);
        frame.inner_margin(Margin::symmetric(size::GAP as i8, 0)).show(ui, |ui| {
            ui.set_width(width - 2.0 * size::GAP);
            ui.set_height(look::TOOLBAR);
            toolbar(ui, model, has_terminal, focus, &mut pass.asks);
        });
    });
    pass.floats.push(float.response.rect);
}

/// What takes time: over the picture, for a full screen has it too.
fn saving(ui: &Ui, area: Rect, model: &Model, pass: &mut Pass) {
    let t = ui.tokens();
    let Some(saving) = &model.saving else { return };
    let at = area.center_top() + vec2(0.0, size::GAP_LARGE);
    let float = Area::new(Id::new("saving")).order(Order::Middle).fixed_pos(at).pivot(Align2::CENTER_TOP);
    let float = float.show(ui.ctx(), |ui| {
        let frame = Frame::new().fill(t.surface).stroke((size::LINE, t.border_strong));
        frame.corner_radius(size::RADIUS_LARGE).inner_margin(Margin::symmetric(12, 8)).show(ui, |ui| {
            ui.set_width((area.width() - 4.0 * size::GAP_LARGE).min(look::SAVING));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let reason = match (saving.can_cancel, saving.cancelling) {
                    (_, true) => Some("It is being given up"),
                    (false, _) => Some("It can't be given up"),
                    _ => None,
                };
                if ui.tool_button(Tone::Info, icon::X, Action::Cancel.label(), reason).clicked() {
                    pass.asks.push(Ask::Do(Action::Cancel));
                }
                ui.vertical(|ui| {
                    ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
                    let words = match (saving.cancelling, saving.share) {
                        (true, _) => format!("{}: cancelling…", saving.what),
                        (_, Some(share)) => format!("{}, {:.0} %", saving.what, share * 100.0),
                        _ => format!("{}…", saving.what),
                    };
                    ui.add(egui::Label::new(&words).truncate());
                    ui.meter(saving.share.unwrap_or(0.0), &saving.what);
                });
            });
        });
    });
    pass.floats.push(float.response.rect);
}

/// The notice and the capture's banner. Neither takes the pointer from the guest.
fn messages(ui: &Ui, area: Rect, model: &Model, now: Instant) {
    let t = ui.tokens();
    let chip = |id: &str, at: egui::Pos2, pivot: Align2, sign: &str, color, text: &str| {
        let area = Area::new(Id::new(id)).order(Order::Foreground).fixed_pos(at).pivot(pivot).interactable(false);
        area.show(ui.ctx(), |ui| {
            let frame = Frame::new().fill(t.surface).stroke((size::LINE, t.border_strong));
            frame.corner_radius(size::RADIUS_LARGE).inner_margin(Margin::symmetric(12, 8)).show(ui, |ui| {
                ui.set_max_width((area_width(ui) - 4.0 * size::GAP_LARGE).min(640.0));
                ui.with_layout(Layout::left_to_right(Align::TOP), |ui| {
                    ui.label(RichText::new(sign).size(18.0).color(color));
                    ui.add(egui::Label::new(text).wrap());
                });
            });
        });
    };
    if let Some(until) = model.banner {
        let below = if model.fullscreen && model.toolbar { look::TOOLBAR } else { 0.0 };
        let at = area.center_top() + vec2(0.0, below + size::GAP_LARGE);
        let text = "Press Right Ctrl to release keyboard and pointer";
        chip("banner", at, Align2::CENTER_TOP, icon::MOUSE, t.accent_text, text);
        ui.ctx().request_repaint_after(until.saturating_duration_since(now));
    }
    if let Some(notice) = &model.notice {
        let at = area.center_bottom() - vec2(0.0, size::GAP_LARGE);
        let (sign, color) = match notice.tone {
            Tone::Error => (icon::WARNING_CIRCLE, t.error),
            Tone::Warning => (icon::WARNING, t.paused),
            Tone::Info => (icon::INFO, t.text_muted),
            Tone::Good => (icon::CHECK_CIRCLE, t.running),
        };
        chip("notice", at, Align2::CENTER_BOTTOM, sign, color, &notice.text);
        ui.ctx().request_repaint_after(notice.until.saturating_duration_since(now));
    }
}

fn area_width(ui: &Ui) -> f32 {
    ui.ctx().content_rect().width()
}
