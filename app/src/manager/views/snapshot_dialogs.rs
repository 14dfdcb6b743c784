//! Dialogs about snapshots and forks: what one is called, what going back and deleting do.

use egui::{Key, Response, TextEdit, Ui, WidgetInfo};

use super::dialogs::{answers, careful_answers, first_focus};
use super::{View, form};
use crate::jobs::{First, Present};
use crate::library::{Timeline, name, size::human};
use crate::manager::action::{Action, Named, Request};
use crate::manager::model::{Machine, Snapshots, State};
use crate::manager::state::{Copy, Dialog, Return, Words};
use crate::theme::{Amount, Note, Tone, UiExt, icon, size};

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
    if one.is_checkpoint {
        ui.section(&format!("Keep “{}”", one.name));
        ui.muted("It becomes a snapshot, which stays until you delete it.");
    } else {
        ui.section(&format!("Edit “{}”", one.name));
    }
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
    let kept_anyway = snapshots.plan.is_some() && !alive;
    if suspended && !kept_anyway {
        let text = "What it was suspended in is given up. To keep that, resume it first: a snapshot can be taken while it runs.";
        ui.notice(Tone::Warning, &format!("{} is suspended", machine.name), text, |_| ());
    }
    back.keep &= !suspended;
    ui.add_space(size::GAP_SMALL);
    ui.add_enabled_ui(!suspended, |ui| ui.checkbox(&mut back.keep, "Take a snapshot of the present first"));
    let taken = snapshots.names();
    let problem = back.keep.then(|| problem(&back.name, &taken, "snapshot")).flatten();
    if back.keep {
        ui.field_row("Name", Note::NONE.or_error(problem.as_deref()), |ui, label| {
            form::text_field(ui, label, "Name of the snapshot of the present", &mut back.name, "", 0.0)
        });
    } else if kept_anyway {
        ui.fine_print("What the machine is now stays on its timeline.");
    } else if !suspended {
        ui.fine_print("What the machine is now is lost.");
    }
    ui.checkbox(&mut back.start, "Start it afterwards");
    let label = if alive { "Power off and restore" } else { "Restore" };
    let tone = if back.keep || kept_anyway { Tone::Good } else { Tone::Error };
    let refusal = model.job_of(&machine.name).map(|_| "Wait until its job is done, or cancel it");
    if careful_answers(ui, view, tone, icon::RESTORE, label, refusal.or(problem.as_deref())) {
        let keep = back.keep.then(|| back.name.trim().to_string());
        let present = Present { keep, power_off: alive, first: First::Keep };
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
        _ if one.is_checkpoint => "What came after it stays.",
        (0, false) => "Nothing came after it.",
        (0, true) => "What the machine is now stays.",
        (1, false) => "The snapshot that came after it stays.",
        (1, true) => "The snapshot that came after it stays, and so does what the machine is now.",
        (_, false) => "The snapshots that came after it stay.",
        (_, true) => "The snapshots that came after it stay, and so does what the machine is now.",
    };
    let merge = match (after > 0 || one.is_present, machine.state.is_alive()) {
        (false, _) => "",
        (true, false) => " What is still needed of its disks is merged, which takes some time.",
        (true, true) => " What is still needed of its disks is merged, while the machine runs on.",
    };
    format!("It can't be restored any more. {rest}{merge} Up to {} on this host become free.", human(one.size))
}

/// Makes a clone.
pub fn clone(ui: &mut Ui, view: &mut View<'_>, mut copy: Copy) {
    let model = view.model;
    let of = copy.of.as_deref().and_then(|id| model.snapshots_of(&copy.machine)?.get(id));
    match of {
        Some(one) if one.is_checkpoint => ui.section(&format!("Open {} as it was on {}", copy.machine, one.taken)),
        Some(one) => ui.section(&format!("Clone “{}” of {}", one.name, copy.machine)),
        None => ui.section(&format!("Clone {}", copy.machine)),
    };
    ui.muted(match of {
        Some(one) if one.running => "Another machine goes on from there, with its memory. This one stays what it is.",
        Some(_) => "Another machine begins there. This one stays what it is.",
        None => "Another machine that begins with what this one is now.",
    });
    ui.add_space(size::GAP);
    let problem = problem(&copy.name, &model.names(), "virtual machine");
    let enter = name_field(ui, &mut copy.name, problem.as_deref());
    for (full, label, text) in [
        (false, "Linked", "There at once: both share what they have in common, and take room for what they change."),
        (true, "Full", "Shares nothing: its disks are copied, which takes time and room."),
    ] {
        ui.vertical(|ui| {
            ui.spacing_mut().item_spacing.y = 0.0;
            ui.radio_value(&mut copy.full, full, label);
            ui.fine_print(text);
        });
    }
    ui.checkbox(&mut copy.start, "Start it");
    let clicked = answers(ui, view, Tone::Good, icon::CLONE, "Clone", problem.as_deref());
    if (clicked || enter) && problem.is_none() {
        let of = of.map(|one| Named { id: one.id.clone(), name: one.name.clone() });
        let (machine, new) = (copy.machine.clone(), copy.name.trim().to_string());
        view.ask(Action::Answer(Request::Clone { machine, of, new, full: copy.full, start: copy.start }));
    }
    if let Some(Dialog::Clone(kept)) = &mut view.state.dialog {
        *kept = copy;
    }
}

/// How the timeline is kept.
pub fn timeline(ui: &mut Ui, view: &mut View<'_>, machine: &str, mut on: bool, mut plan: Timeline) {
    ui.section(&format!("Timeline of {machine}"));
    ui.muted(
        "While the machine runs, checkpoints are taken by themselves: all of the last hour are kept, then one an hour for a \
         day, then one a day for a month. You can go back to each, or open it as a copy.",
    );
    ui.add_space(size::GAP_SMALL);
    let first = ui.checkbox(&mut on, "Keep a timeline");
    first_focus(ui, &first);
    let problem = plan.validate().err().filter(|_| on);
    ui.add_enabled_ui(on, |ui| {
        ui.field_row("Every", Note::NONE, |ui, label| {
            let mut value = f64::from(plan.minutes);
            let amount = Amount {
                name: "Minutes between two checkpoints",
                range: 1.0..=240.0,
                step: 1.0,
                logarithmic: true,
                format: |minutes| format!("{minutes:.0} min"),
                parse: |text| text.trim().trim_end_matches("min").trim().parse().ok(),
                beside: 0.0,
            };
            if amount.show(ui, label, &mut value) {
                plan.minutes = value.round().clamp(0.0, 1e6) as u32;
            }
        });
        let note =
            Note::hint("The oldest checkpoints go when everything saved takes more").or_error(problem.as_deref());
        ui.field_row("Within", note, |ui, label| {
            let mut value = plan.space_mib as f64 / 1024.0;
            let amount = Amount {
                name: "Space for everything saved, GiB",
                range: 1.0..=500.0,
                step: 1.0,
                logarithmic: true,
                format: |gib| human((gib.max(0.0) * (1u64 << 30) as f64) as u64),
                // A plain number is GiB.
                parse: |text| {
                    let bytes =
                        || crate::library::size::parse(text).ok().map(|bytes| bytes as f64 / (1u64 << 30) as f64);
                    text.trim().parse().ok().or_else(bytes)
                },
                beside: 0.0,
            };
            if amount.show(ui, label, &mut value) {
                plan.space_mib = (value * 1024.0).round().clamp(0.0, 1e12) as u64;
            }
        });
    });
    if !on && view.model.snapshots_of(machine).is_some_and(|snapshots| !snapshots.timeline.is_empty()) {
        ui.fine_print("The checkpoints that there are stay until you delete them.");
    }
    if answers(ui, view, Tone::Good, icon::GOOD, "Save", problem.as_deref()) {
        view.ask(Action::Answer(Request::SetTimeline(machine.to_string(), on.then_some(plan))));
    }
    if let Some(Dialog::Timeline(_, kept_on, kept)) = &mut view.state.dialog {
        (*kept_on, *kept) = (on, plan);
    }
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
