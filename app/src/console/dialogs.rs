//! The console's dialogs: what is asked before something is lost, the disc image's path, the list of keys.

use std::path::PathBuf;

use egui::{
    Align, Frame, Grid, Id, Layout, Margin, Modal, Response, RichText, ScrollArea, TextEdit, Ui, WidgetInfo, vec2,
};
use egui_phosphor::regular as icon;

use super::actions::{Action, CHORDS};
use super::overlay::{Ask, Model};
use super::timeline::{Point, Timeline};
use super::{Loss, look};
use crate::library::Timestamp;
use crate::theme::{Note, Tone, UiExt, size, text_edit};

/// An open dialog.
#[derive(Debug, Clone)]
pub struct Dialog {
    kind: Kind,
    /// Not drawn yet: the control that most people want takes the focus.
    fresh: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Close,
    PowerOff,
    Reset,
    LoseAnyway(Loss, String),
    Keys,
    Medium { drive: usize, path: String },
    Snapshot { name: String, note: String },
    Timeline(Timeline),
}

impl Dialog {
    fn new(kind: Kind) -> Dialog {
        Dialog { kind, fresh: true }
    }

    /// What to do with a machine whose window is being closed.
    pub fn close() -> Dialog {
        Dialog::new(Kind::Close)
    }

    /// Whether to pull the plug.
    pub fn power_off() -> Dialog {
        Dialog::new(Kind::PowerOff)
    }

    /// Whether to press the reset button.
    pub fn reset() -> Dialog {
        Dialog::new(Kind::Reset)
    }

    /// Whether to do it though what the machine is now could not be kept on its timeline: why.
    pub fn lose_anyway(loss: Loss, why: String) -> Dialog {
        Dialog::new(Kind::LoseAnyway(loss, why))
    }

    /// The list of keys.
    pub fn keys() -> Dialog {
        Dialog::new(Kind::Keys)
    }

    /// Which disc image to put in a drive.
    pub fn medium(drive: usize) -> Dialog {
        Dialog::new(Kind::Medium { drive, path: String::new() })
    }

    /// What a snapshot is to be called.
    pub fn snapshot() -> Dialog {
        let name = format!("Snapshot {}", Timestamp::now().local());
        Dialog::new(Kind::Snapshot { name, note: String::new() })
    }

    /// A slider over these points of the past, the oldest first.
    pub fn timeline(points: Vec<Point>) -> Dialog {
        Dialog::new(Kind::Timeline(Timeline::new(points)))
    }

    /// A file was picked for a drive; taken in if this dialog asks for it.
    pub fn picked(&mut self, for_drive: usize, file: PathBuf) {
        if let Kind::Medium { drive, path } = &mut self.kind
            && *drive == for_drive
        {
            *path = file.to_string_lossy().into_owned();
            self.fresh = true;
        }
    }

    /// Draws it; `false` when it is over.
    pub fn show(&mut self, ui: &Ui, model: &Model, asks: &mut Vec<Ask>) -> bool {
        let fresh = std::mem::take(&mut self.fresh);
        let before = asks.len();
        let width = if matches!(self.kind, Kind::Keys) { look::KEYS } else { size::DIALOG };
        let room = ui.ctx().content_rect().width() - 2.0 * size::GAP_PAGE;
        let frame = Frame::window(ui.style()).inner_margin(Margin::same(size::GAP_PAGE as i8));
        let modal = Modal::new(Id::new("dialog")).frame(frame).backdrop_color(ui.tokens().backdrop);
        let modal = modal.show(ui.ctx(), |ui| {
            ui.set_width(width.min(room - 2.0 * size::GAP_PAGE));
            match &mut self.kind {
                Kind::Close => close(ui, model, fresh, asks),
                Kind::PowerOff => confirm(
                    ui,
                    fresh,
                    &format!("Power off “{}”?", model.title),
                    "What the guest has not written to its disks is lost, as if the plug were pulled.",
                    (icon::POWER, "Power off", Action::PowerOff),
                    asks,
                ),
                Kind::Reset => confirm(
                    ui,
                    fresh,
                    &format!("Reset “{}”?", model.title),
                    "The machine starts again at once. What the guest has not written to its disks is lost.",
                    (icon::ARROW_CLOCKWISE, "Reset", Action::Reset),
                    asks,
                ),
                Kind::LoseAnyway(loss, why) => {
                    let action = Action::LoseAnyway(*loss);
                    let (title, label) = match loss {
                        Loss::Reset => (format!("Reset “{}” all the same?", model.title), "Reset all the same"),
                        Loss::PowerOff => {
                            (format!("Power off “{}” all the same?", model.title), "Power off all the same")
                        }
                    };
                    let text = format!("What it is now could not be kept on its timeline first: {why}.");
                    confirm(ui, fresh, &title, &text, (action.icon(), label, action), asks);
                }
                Kind::Keys => keys(ui, model, fresh, asks),
                Kind::Timeline(timeline) => timeline.show(ui, fresh, asks),
                Kind::Snapshot { name, note } => snapshot(ui, fresh, name, note, asks),
                Kind::Medium { drive, path } => medium(ui, fresh, *drive, path, asks),
            }
        });
        // Every answer but a look at the disk ends it.
        let answered = asks[before..].iter().any(|ask| !matches!(ask, Ask::Browse(_)));
        !answered && !modal.should_close()
    }
}

/// Buttons at the lower right, added from the right.
pub(super) fn buttons(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    ui.add_space(size::GAP_LARGE);
    let row = vec2(ui.available_width(), size::CONTROL);
    ui.allocate_ui_with_layout(row, Layout::right_to_left(Align::Center), add);
}

pub(super) fn focus_if(fresh: bool, response: Response) -> Response {
    if fresh {
        response.request_focus();
    }
    response
}

fn close(ui: &mut Ui, model: &Model, fresh: bool, asks: &mut Vec<Ask>) {
    ui.section(&format!("“{}” is {}", model.title, model.state.word()));
    ui.muted("What should happen when its window closes?");
    ui.add_space(size::GAP);
    let mut choice = |ui: &mut Ui, tone, sign: &str, label: &str, text: &str, action| {
        let row = ui.horizontal(|ui| {
            let left = ui.cursor().left();
            let response = ui.tool_button(tone, sign, label, None);
            ui.add_space((left + look::CHOICE - response.rect.right()).max(0.0));
            ui.with_layout(Layout::top_down(Align::Min), |ui| ui.muted(text));
            response
        });
        if row.inner.clicked() {
            asks.push(Ask::Do(action));
        }
        row.inner
    };
    let text = "Saves it as it is. Its next start goes on from here.";
    let first = model.can_save.then(|| choice(ui, Tone::Good, icon::MOON, "Suspend", text, Action::Suspend));
    let text = "Asks the guest to shut down. The window closes when it has.";
    let tone = if first.is_some() { Tone::Info } else { Tone::Good };
    let second = choice(ui, tone, icon::POWER, "Shut down", text, Action::ShutDown);
    focus_if(fresh, first.unwrap_or(second));
    if model.can_keep_running {
        let text = "Goes on without a window. Open it again from the library.";
        choice(ui, Tone::Info, icon::PLAY, "Keep running", text, Action::KeepRunning);
    }
    let text = "At once. What the guest has not written is lost.";
    choice(ui, Tone::Error, icon::LIGHTNING, "Power off", text, Action::PowerOff);
    buttons(ui, |ui| {
        if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
            asks.push(Ask::CloseDialog);
        }
    });
}

fn confirm(
    ui: &mut Ui,
    fresh: bool,
    title: &str,
    text: &str,
    (sign, label, action): (&str, &str, Action),
    asks: &mut Vec<Ask>,
) {
    ui.section(title);
    ui.muted(text);
    buttons(ui, |ui| {
        if ui.tool_button(Tone::Error, sign, label, None).clicked() {
            asks.push(Ask::Do(action));
        }
        if focus_if(fresh, ui.tool_button(Tone::Info, "", "Cancel", None)).clicked() {
            asks.push(Ask::CloseDialog);
        }
    });
}

fn keys(ui: &mut Ui, model: &Model, fresh: bool, asks: &mut Vec<Ask>) {
    ui.section("Keys of this window");
    ui.muted("The host key is Right Ctrl. All other keys go to the guest.");
    ui.add_space(size::GAP);
    let room = ui.ctx().content_rect().height() - look::DIALOG_REST;
    ScrollArea::vertical().max_height(room.max(size::CONTROL)).show(ui, |ui| {
        ui.set_width(ui.available_width());
        Grid::new("keys").num_columns(2).spacing([size::GAP_PAGE, size::GAP_SMALL]).show(ui, |ui| {
            let mut line = |keys: &str, text: &str| {
                ui.label(RichText::new(keys).strong());
                ui.muted(text);
                ui.end_row();
            };
            line("Host", Action::ToggleCapture.label());
            line("Left Ctrl+Alt", "Release input");
            for chord in &CHORDS {
                let label = match chord.action {
                    Action::SendKeys(_) => format!("Send {}", chord.action.label()),
                    Action::ShowKeys => "This list".into(),
                    action => action.label().to_string(),
                };
                line(chord.name, &label);
            }
        });
    });
    ui.add_space(size::GAP);
    ui.fine_print(&format!("Drawn by {}", model.graphics));
    buttons(ui, |ui| {
        if focus_if(fresh, ui.tool_button(Tone::Info, "", "Close", None)).clicked() {
            asks.push(Ask::CloseDialog);
        }
    });
}

fn snapshot(ui: &mut Ui, fresh: bool, name: &mut String, note: &mut String, asks: &mut Vec<Ask>) {
    ui.section("Take a snapshot");
    ui.muted("Its disks, its memory and its screen, as they are now. The guest is stopped for a moment only.");
    ui.add_space(size::GAP);
    let problem = crate::library::name::check(name).err().map(|error| error.to_string());
    let field = |ui: &mut Ui, label: &str, text: &mut String, problem: Option<&str>| {
        ui.field_row(label, Note::NONE.or_error(problem), |ui, id| {
            let width = ui.available_width();
            let field = ui.add(text_edit(text).desired_width(width)).labelled_by(id);
            let value = text.clone();
            field.widget_info(|| {
                let mut info = WidgetInfo::text_edit(true, value.clone(), value.clone(), "");
                info.label = Some(label.to_string());
                info
            });
            field
        })
    };
    let named = focus_if(fresh, field(ui, "Name", name, problem.as_deref()));
    let noted = field(ui, "Note", note, None);
    let left = named.lost_focus() || noted.lost_focus();
    let entered = left && ui.input(|i| i.key_pressed(egui::Key::Enter));
    buttons(ui, |ui| {
        let take = ui.tool_button(Tone::Good, icon::BOOKMARK_SIMPLE, "Take snapshot", problem.as_deref()).clicked();
        if (take || entered) && problem.is_none() {
            asks.push(Ask::TakeSnapshot(name.trim().into(), note.trim().into()));
        }
        if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
            asks.push(Ask::CloseDialog);
        }
    });
}

fn medium(ui: &mut Ui, fresh: bool, drive: usize, path: &mut String, asks: &mut Vec<Ask>) {
    ui.section("Insert disc image");
    let label = ui.muted("ISO file").id;
    let field = ui
        .horizontal(|ui| {
            let browse = ui.available_width() - 110.0;
            let edit = TextEdit::singleline(path).desired_width(browse).hint_text("/path/to/disc.iso");
            let field = ui.add(edit.vertical_align(Align::Center)).labelled_by(label);
            if ui.tool_button(Tone::Info, icon::FOLDER_OPEN, "Browse…", None).clicked() {
                asks.push(Ask::Browse(drive));
            }
            field
        })
        .inner;
    let field = focus_if(fresh, field);
    let entered = field.lost_focus() && ui.input(|i| i.key_pressed(egui::Key::Enter));
    let file = PathBuf::from(path.trim());
    let reason = (!file.is_absolute()).then_some("Give the whole path, from /");
    buttons(ui, |ui| {
        let insert = ui.tool_button(Tone::Good, icon::DISC, "Insert", reason).clicked();
        if (insert || entered) && reason.is_none() {
            asks.push(Ask::Insert(drive, file));
        }
        if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
            asks.push(Ask::CloseDialog);
        }
    });
}
