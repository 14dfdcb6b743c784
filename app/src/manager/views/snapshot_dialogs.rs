//! Dialogs about snapshots and forks: what one is called, what going back and deleting do.

use egui::{Key, Response, TextEdit, Ui, WidgetInfo};

use super::dialogs::first_focus;
use super::{View, form};
use crate::jobs::Present;
use crate::library::{name, size::human};
use crate::manager::action::{Action, Named, Request};
use crate::manager::model::{Machine, Snapshots, State};
use crate::manager::state::{Dialog, Return, Words};
use crate::theme::{Note, Tone, UiExt, icon, size};

/// The lines that a note's field shows.
const NOTE_LINES: usize = 3;

/// What is wrong with a name, of which `taken` are others'.
fn problem(typed: &str, taken: &[&str], whose: &str) -> Option<String> {
    match name::check(typed) {
        Err(error) => Some(error.to_string()),
        Ok(typed) if taken.iter().any(|other| name::same(other, &typed)) => {
            Some(format!("another {whose} has this name; choose another"))
        }
        Ok(_) => None,
    }
}

/// A name's field, with the keyboard when the dialog opens. Says whether Enter was pressed in it.
fn name_field(ui: &mut Ui, typed: &mut String, problem: Option<&str>) -> bool {
    let field = ui.field_row("Name", Note::NONE.or_error(problem), |ui, label| {
        form::text_field(ui, label, "Name", typed, "", 0.0)
    });
    let enter = field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
    first_focus(ui, &field);
    enter
}

fn note_field(ui: &mut Ui, typed: &mut String) -> Response {
    ui.field_row("Note", Note::NONE, |ui, label| {
        let width = ui.available_width().min(size::FIELD);
        let edit = TextEdit::multiline(typed).desired_rows(NOTE_LINES).desired_width(width);
        let response = ui.add(edit).labelled_by(label);
        let value = typed.clone();
        response.widget_info(|| {
            let mut info = WidgetInfo::text_edit(true, value.clone(), value.clone(), "");
            info.label = Some("Note".into());
            info
        });
        response
    })
}

/// The button that does it, and *Cancel*. Says whether it was clicked.
fn answers(ui: &mut Ui, view: &mut View<'_>, tone: Tone, sign: &str, label: &str, reason: Option<&str>) -> bool {
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
fn careful_answers(
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

fn names_of<'a>(view: &View<'a>, machine: &str) -> Vec<&'a str> {
    view.model.snapshots_of(machine).map(Snapshots::names).unwrap_or_default()
}

/// Takes one.
pub fn take(ui: &mut Ui, view: &mut View<'_>, machine: &str, mut words: Words) {
    ui.section(&format!("Take a snapshot of {machine}"));
    let state = view.model.machine(machine).map(|machine| machine.state);
    ui.muted(match state {
        Some(State::Running) => "Its disks, its memory and its screen, as they are now. It runs on meanwhile.",
        Some(State::Paused) => "Its disks, its memory and its screen, as they are now.",
        _ => "Its disks, as they are now.",
    });
    ui.add_space(size::GAP);
    let problem = problem(&words.name, &names_of(view, machine), "snapshot");
    let enter = name_field(ui, &mut words.name, problem.as_deref());
    note_field(ui, &mut words.note);
    let clicked = answers(ui, view, Tone::Good, icon::SNAPSHOT, "Take Snapshot", problem.as_deref());
    if (clicked || enter) && problem.is_none() {
        let (name, note) = (words.name.trim().to_string(), words.note.trim().to_string());
        view.ask(Action::Answer(Request::TakeSnapshot(machine.to_string(), name, note)));
    }
    if let Some(Dialog::TakeSnapshot(_, kept)) = &mut view.state.dialog {
        *kept = words;
    }
}

/// Gives one another name and note.
pub fn describe(ui: &mut Ui, view: &mut View<'_>, machine: &str, id: &str, mut words: Words) {
    let snapshots = view.model.snapshots_of(machine);
    let Some(one) = snapshots.and_then(|snapshots| snapshots.get(id)) else { return };
    ui.section(&format!("Edit “{}”", one.name));
    let taken: Vec<&str> = names_of(view, machine).into_iter().filter(|other| *other != one.name).collect();
    let problem = problem(&words.name, &taken, "snapshot");
    let enter = name_field(ui, &mut words.name, problem.as_deref());
    note_field(ui, &mut words.note);
    let clicked = answers(ui, view, Tone::Good, icon::GOOD, "Save", problem.as_deref());
    if (clicked || enter) && problem.is_none() {
        let named = Named { id: one.id.clone(), name: one.name.clone() };
        let (name, note) = (words.name.trim().to_string(), words.note.trim().to_string());
        view.ask(Action::Answer(Request::DescribeSnapshot(machine.to_string(), named, name, note)));
    }
    if let Some(Dialog::DescribeSnapshot(_, _, kept)) = &mut view.state.dialog {
        *kept = words;
    }
}

/// Goes back to one.
pub fn restore(ui: &mut Ui, view: &mut View<'_>, mut back: Return) {
    let model = view.model;
    let (machine, snapshots) = (model.machine(&back.machine), model.snapshots_of(&back.machine));
    let (Some(machine), Some(snapshots)) = (machine, snapshots) else { return };
    let Some(one) = snapshots.get(&back.id) else { return };
    let alive = machine.state.is_alive();
    let suspended = machine.state == State::Suspended;
    ui.section(&format!("Restore “{}”?", one.name));
    let then = match one.running {
        true => "Its next start goes on from there, with its memory.",
        false => "It is off then, as it was.",
    };
    ui.muted(&format!("{} goes back to {}. {then}", machine.name, one.taken));
    if alive || suspended {
        ui.add_space(size::GAP_SMALL);
    }
    if alive {
        let text = "It has to be stopped for this, and is powered off. What the guest has not written to its disk is in its \
                    memory only: a snapshot of the present keeps that too.";
        ui.notice(Tone::Warning, &format!("{} is running", machine.name), text, |_| ());
    }
    if suspended {
        let text = "What it was suspended in is given up. To keep that, resume it first: a snapshot can be taken while it runs.";
        ui.notice(Tone::Warning, &format!("{} is suspended", machine.name), text, |_| ());
        back.keep = false;
    }
    ui.add_space(size::GAP_SMALL);
    ui.add_enabled_ui(!suspended, |ui| ui.checkbox(&mut back.keep, "Take a snapshot of the present first"));
    let taken = snapshots.names();
    let problem = back.keep.then(|| problem(&back.name, &taken, "snapshot")).flatten();
    if back.keep {
        ui.field_row("Name", Note::NONE.or_error(problem.as_deref()), |ui, label| {
            form::text_field(ui, label, "Name of the snapshot of the present", &mut back.name, "", 0.0)
        });
    } else if !suspended {
        ui.fine_print("What the machine is now is lost.");
    }
    ui.checkbox(&mut back.start, "Start it afterwards");
    let label = if alive { "Power off and restore" } else { "Restore" };
    let tone = if back.keep { Tone::Good } else { Tone::Error };
    let refusal = model.job_of(&machine.name).map(|_| "Wait until its job is done, or cancel it");
    if careful_answers(ui, view, tone, icon::RESTORE, label, refusal.or(problem.as_deref())) {
        let present = Present { keep: back.keep.then(|| back.name.trim().to_string()), power_off: alive };
        view.ask(Action::Answer(Request::RestoreSnapshot {
            machine: machine.name.clone(),
            snapshot: Named { id: one.id.clone(), name: one.name.clone() },
            present,
            start: back.start,
        }));
    }
    if let Some(Dialog::RestoreSnapshot(kept)) = &mut view.state.dialog {
        *kept = back;
    }
}

/// Deletes one.
pub fn delete(ui: &mut Ui, view: &mut View<'_>, name: &str, id: &str) {
    let model = view.model;
    let (Some(machine), Some(snapshots)) = (model.machine(name), model.snapshots_of(name)) else { return };
    let Some(one) = snapshots.get(id) else { return };
    ui.section(&format!("Delete “{}”?", one.name));
    ui.muted(&what_deleting_does(machine, snapshots, id));
    if careful_answers(ui, view, Tone::Error, icon::TRASH, "Delete", None) {
        let named = Named { id: one.id.clone(), name: one.name.clone() };
        view.ask(Action::Answer(Request::DeleteSnapshot(name.to_string(), named)));
    }
}

/// What becomes of a machine and of its other snapshots when one goes.
fn what_deleting_does(machine: &Machine, snapshots: &Snapshots, id: &str) -> String {
    let Some(one) = snapshots.get(id) else { return String::new() };
    let after = snapshots.list().iter().filter(|other| other.parent.as_deref() == Some(id)).count();
    let rest = match (after, one.is_present) {
        (0, false) => "Nothing came after it.",
        (0, true) => "What the machine is now stays.",
        (1, false) => "The snapshot that came after it stays.",
        (1, true) => "The snapshot that came after it stays, and so does what the machine is now.",
        (_, false) => "The snapshots that came after it stay.",
        (_, true) => "The snapshots that came after it stay, and so does what the machine is now.",
    };
    let merge = match (after > 0 || one.is_present, machine.state.is_alive()) {
        (false, _) => "",
        (true, false) => " What they need of its disks is merged into theirs, which takes some time.",
        (true, true) => " What they need of its disks is merged into theirs, while the machine runs on.",
    };
    format!("It can't be restored any more. {rest}{merge} Up to {} on this host become free.", human(one.size))
}

/// Forks the machine.
pub fn fork(ui: &mut Ui, view: &mut View<'_>, machine: &str, mut typed: String) {
    ui.section(&format!("Fork {machine}"));
    ui.muted(
        "Another machine goes on from this very moment. Both share their memory and disks until they change them, so that it \
         is there at once and takes hardly any room.",
    );
    ui.add_space(size::GAP);
    let problem = problem(&typed, &view.model.names(), "virtual machine");
    let enter = name_field(ui, &mut typed, problem.as_deref());
    let clicked = answers(ui, view, Tone::Good, icon::FORK, "Fork", problem.as_deref());
    if (clicked || enter) && problem.is_none() {
        view.ask(Action::Answer(Request::Fork(machine.to_string(), typed.trim().to_string())));
    }
    if let Some(Dialog::Fork(_, kept)) = &mut view.state.dialog {
        *kept = typed;
    }
}
