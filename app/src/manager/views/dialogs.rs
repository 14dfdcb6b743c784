//! Dialogs of the window: a new name, what would be lost, all keys, and what this is.

use egui::{Frame, Grid, Id, Key, Margin, Modal, ScrollArea, Ui};

use super::{View, disk_dialogs as disks, form, jobs, snapshot_dialogs as snapshots};
use crate::manager::action::{Action, Command, Power};
use crate::manager::state::Dialog;
use crate::theme::{Note, Tone, UiExt, icon, size};

/// Draws the open dialog, if one is.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    let Some(dialog) = view.state.dialog.clone() else { return };
    // Of two that follow one another none takes the other for itself: each begins with the keyboard where it belongs.
    let which = std::mem::discriminant(&dialog);
    let contents = |ui: &mut Ui| match dialog {
        Dialog::Rename(name, typed) => rename(ui, view, &name, typed),
        Dialog::Confirm(name, verb) => confirm(ui, view, &name, verb),
        Dialog::ResetVariables(name) => reset_variables(ui, view, &name),
        Dialog::TakeSnapshot(name, words) => snapshots::take(ui, view, &name, words),
        Dialog::DescribeSnapshot(name, id, words) => snapshots::describe(ui, view, &name, &id, words),
        Dialog::RestoreSnapshot(back) => snapshots::restore(ui, view, back),
        Dialog::DeleteSnapshot(name, id) => snapshots::delete(ui, view, &name, &id),
        Dialog::Fork(name, typed) => snapshots::fork(ui, view, &name, typed),
        Dialog::Clone(copy) => snapshots::clone(ui, view, copy),
        Dialog::Timeline(name, on, plan) => snapshots::timeline(ui, view, &name, on, plan),
        Dialog::Image(image) => disks::image(ui, view, image),
        Dialog::Grow { disk, name, now, typed, kept } => disks::grow(ui, view, disk, &name, now, typed, kept),
        Dialog::Convert(from, to, format) => disks::convert(ui, view, &from, to, format),
        Dialog::AddDisk(machine, size) => disks::add(ui, view, machine, size),
        Dialog::Switch(machine, disk, format) => disks::switch(ui, view, machine, disk, format),
        Dialog::Jobs => jobs::list(ui, view),
        Dialog::Quit => jobs::quit(ui, view),
        Dialog::Keys => keys(ui, view),
        Dialog::About => about(ui, view),
    };
    let closed = modal(ui, "dialog", size::DIALOG, |ui| drop(ui.push_id(which, contents)));
    if closed {
        view.ask(Action::Leave);
    }
}

/// A dialog over the window. Says whether the person turned away from it (Escape, or a click beside it).
pub(super) fn modal(ui: &mut Ui, id: &str, width: f32, add: impl FnOnce(&mut Ui)) -> bool {
    let t = ui.tokens();
    let room = ui.ctx().content_rect();
    let frame = Frame::new()
        .fill(t.surface)
        .stroke(ui.visuals().window_stroke)
        .corner_radius(size::RADIUS_LARGE)
        .shadow(ui.visuals().window_shadow)
        .inner_margin(Margin::same(size::GAP_PAGE as i8));
    let modal = Modal::new(Id::new(id)).frame(frame).backdrop_color(t.backdrop);
    let response = modal.show(ui.ctx(), |ui| {
        ui.set_width(width.min(room.width() - 4.0 * size::GAP_PAGE));
        ui.set_max_height(room.height() - 4.0 * size::GAP_PAGE);
        add(ui);
    });
    response.should_close()
}

/// The button that does it, and *Cancel*. Says whether it was clicked.
pub(super) fn answers(
    ui: &mut Ui,
    view: &mut View<'_>,
    tone: Tone,
    sign: &str,
    label: &str,
    reason: Option<&str>,
) -> bool {
    ui.add_space(size::GAP);
    ui.horizontal_wrapped(|ui| {
        let done = ui.tool_button(tone, sign, label, reason).clicked();
        if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
            view.ask(Action::Leave);
        }
        done
    })
    .inner
}

/// The same for what loses something: *Cancel* has the keyboard.
pub(super) fn careful_answers(
    ui: &mut Ui,
    view: &mut View<'_>,
    tone: Tone,
    sign: &str,
    label: &str,
    reason: Option<&str>,
) -> bool {
    ui.add_space(size::GAP);
    ui.horizontal_wrapped(|ui| {
        let cancel = ui.tool_button(Tone::Info, "", "Cancel", None);
        first_focus(ui, &cancel);
        if cancel.clicked() {
            view.ask(Action::Leave);
        }
        ui.tool_button(tone, sign, label, reason).clicked()
    })
    .inner
}

fn rename(ui: &mut Ui, view: &mut View<'_>, name: &str, mut typed: String) {
    ui.section(&format!("Rename {name}"));
    let taken = view
        .model
        .names()
        .into_iter()
        .filter(|other| *other != name)
        .any(|other| crate::library::name::same(other, typed.trim()));
    let problem = match crate::library::name::check(&typed) {
        Err(error) => Some(error.to_string()),
        Ok(_) if taken => Some("another virtual machine has this name; choose another".into()),
        Ok(_) => None,
    };
    let field = ui.field_row("Name", Note::NONE.or_error(problem.as_deref()), |ui, label| {
        form::text_field(ui, label, "New name", &mut typed, "", 0.0)
    });
    let enter = field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
    if !field.has_focus() && !enter {
        first_focus(ui, &field);
    }
    ui.add_space(size::GAP);
    ui.horizontal(|ui| {
        let rename = ui.tool_button(Tone::Good, icon::RENAME, "Rename", problem.as_deref());
        if (rename.clicked() || enter) && problem.is_none() {
            view.ask(Action::Rename(name.to_string(), typed.trim().to_string()));
        }
        if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
            view.ask(Action::Leave);
        }
    });
    if let Some(Dialog::Rename(_, text)) = &mut view.state.dialog {
        *text = typed;
    }
}

/// Gives a widget the keyboard when its dialog opens, once.
pub(super) fn first_focus(ui: &Ui, response: &egui::Response) {
    let id = response.id.with("first focus");
    let frame = ui.ctx().cumulative_pass_nr();
    let last = ui.data(|data| data.get_temp::<u64>(id));
    ui.data_mut(|data| data.insert_temp(id, frame));
    if last.is_none_or(|last| last + 2 < frame) {
        response.request_focus();
    }
}

fn confirm(ui: &mut Ui, view: &mut View<'_>, name: &str, verb: Power) {
    let (title, text, label, sign) = match verb {
        Power::Reset => (
            format!("Reset {name}?"),
            "It starts again at once, as if its reset button were pressed. What the guest has not written to its disk \
             is lost.",
            "Reset",
            icon::RESET,
        ),
        _ => (
            format!("Power off {name}?"),
            "Like pulling the plug: what the guest has not written to its disk is lost. Shut Down asks the guest to end \
             by itself.",
            "Power Off",
            icon::POWER_OFF,
        ),
    };
    ui.section(&title);
    ui.muted(text);
    if view.model.machine(name).is_some_and(|machine| machine.has_timeline) {
        ui.muted("A checkpoint of what it is now is kept on its timeline first.");
    }
    ui.add_space(size::GAP);
    let soft = view.model.machine(name).and_then(|machine| Power::ShutDown.refusal(machine.state));
    ui.horizontal_wrapped(|ui| {
        let cancel = ui.tool_button(Tone::Info, "", "Cancel", None);
        first_focus(ui, &cancel);
        if cancel.clicked() {
            view.ask(Action::Leave);
        }
        if verb == Power::Off && ui.tool_button(Tone::Info, icon::SHUT_DOWN, "Shut Down", soft).clicked() {
            view.ask(Action::Confirm(name.to_string(), Power::ShutDown));
        }
        if ui.tool_button(Tone::Error, sign, label, None).clicked() {
            view.ask(Action::Confirm(name.to_string(), verb));
        }
    });
}

fn reset_variables(ui: &mut Ui, view: &mut View<'_>, name: &str) {
    ui.section(&format!("Reset the UEFI variables of {name}?"));
    ui.muted(
        "Boot entries, enrolled keys and the firmware's settings are forgotten, and its next start makes new ones. What is \
         on its disks stays. A system that is found only through its boot entry has to be chosen in the firmware's menu.",
    );
    ui.add_space(size::GAP);
    ui.horizontal_wrapped(|ui| {
        let cancel = ui.tool_button(Tone::Info, "", "Cancel", None);
        first_focus(ui, &cancel);
        if cancel.clicked() {
            view.ask(Action::Leave);
        }
        if ui.tool_button(Tone::Error, icon::RESET, "Reset variables", None).clicked() {
            view.ask(Action::ResetVariables(name.to_string()));
        }
    });
}

fn keys(ui: &mut Ui, view: &mut View<'_>) {
    ui.section("Keys");
    let format = |key| ui.ctx().format_shortcut(&key);
    let mut rows: Vec<(String, String)> = Vec::new();
    for command in Command::ALL {
        if let Some(key) = command.shortcut() {
            rows.push((format(key), command.label().trim_end_matches('…').to_string()));
        }
    }
    for (key, what) in [
        ("Enter", "Start the selected machine, or show its window"),
        ("Up, Down", "Select another machine in the library"),
        ("F10", "To the menus"),
        ("Tab, Shift+Tab", "To the next or previous control"),
        ("Escape", "Close what is open"),
        ("Right Ctrl", "In a machine's window: the host key"),
    ] {
        rows.push((key.into(), what.into()));
    }
    let height = ui.ctx().content_rect().height() - 220.0;
    ScrollArea::vertical().max_height(height.max(120.0)).show(ui, |ui| {
        Grid::new("keys").num_columns(2).spacing([size::GAP_PAGE, size::GAP_SMALL]).min_row_height(24.0).show(
            ui,
            |ui| {
                for (key, what) in rows {
                    ui.strong_text(&key);
                    ui.label(what);
                    ui.end_row();
                }
            },
        );
    });
    close(ui, view);
}

fn about(ui: &mut Ui, view: &mut View<'_>) {
    ui.section(&format!("Orangery {}", env!("CARGO_PKG_VERSION")));
    ui.muted("A desktop virtualization workstation for Linux. Its virtual machine monitor runs on KVM.");
    ui.add_space(size::GAP);
    ui.fact("Licence", "MIT or Apache 2.0");
    ui.fact("Typefaces", "Inter (SIL Open Font License), Phosphor (MIT)");
    ui.fact("Library", &view.model.library.display().to_string());
    close(ui, view);
}

pub(super) fn close(ui: &mut Ui, view: &mut View<'_>) {
    ui.add_space(size::GAP);
    let button = ui.tool_button(Tone::Info, "", "Close", None);
    first_focus(ui, &button);
    if button.clicked() {
        view.ask(Action::Leave);
    }
}
