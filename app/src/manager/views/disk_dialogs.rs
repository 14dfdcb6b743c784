//! Dialogs about disk images: what one is, how large it is to be, where a copy goes.

use std::path::{Path, PathBuf};

use egui::{Key, Ui};
use vmm_core::backend::disk::Format;

use super::dialogs::{answers, careful_answers, first_focus};
use super::{View, form, machine::file_name};
use crate::jobs::disks::Size;
use crate::jobs::{Disk, First};
use crate::library::{MAX_DISK, size::human, wrong_size};
use crate::manager::action::{Action, DiskWork, Purpose, Request};
use crate::manager::model::ImageFacts;
use crate::manager::state::{Dialog, Image};
use crate::theme::{Note, Tone, UiExt, icon, size};

/// Any image: what it is, and what can be done to it.
pub fn image(ui: &mut Ui, view: &mut View<'_>, mut image: Image) {
    ui.section("Disk images");
    ui.muted(
        "Raw, qcow2, VMDK, VDI, VHD and VHDX images are looked at here, and copied into the formats that machines use.",
    );
    let before = image.typed.clone();
    let mut path = PathBuf::from(&image.typed);
    let field = ui.field_row("Image", Note::NONE, |ui, label| {
        form::path_field(ui, view, label, "Image", &mut path, "A file", Purpose::Image)
    });
    image.typed = path.display().to_string();
    first_focus(ui, &field);
    // Not at every letter of it.
    let done = field.lost_focus() && !image.typed.trim().is_empty();
    let known = image.looked.as_ref().is_some_and(|(looked, _)| *looked == path);
    if done && (!known || ui.input(|input| input.key_pressed(Key::Enter))) {
        view.ask(Action::LookAtImage(path));
    }
    match &image.looked {
        Some((path, Some(Ok(facts)))) if known => shown(ui, view, path, facts),
        Some((_, Some(Err(failure)))) if known => {
            let text = format!("{}\n{}", failure.cause, failure.next.as_deref().unwrap_or_default());
            ui.notice(Tone::Error, &failure.what, text.trim_end(), |_| ());
        }
        Some((_, None)) if known => drop(ui.muted("Reading the image…")),
        _ => {}
    }
    ui.add_space(size::GAP);
    if ui.tool_button(Tone::Info, "", "Close", None).clicked() {
        view.ask(Action::Leave);
    }
    if let Some(Dialog::Image(kept)) = &mut view.state.dialog
        && kept.typed == before
    {
        kept.typed = image.typed;
    }
}

fn shown(ui: &mut Ui, view: &mut View<'_>, path: &Path, facts: &ImageFacts) {
    let ImageFacts { sizes, is_usable, below, problems } = facts;
    ui.fact("Format", sizes.format);
    ui.fact("For guests", &human(sizes.guest));
    ui.fact("On this host", &human(sizes.host));
    if !below.is_empty() {
        let names: Vec<String> = below.iter().map(|path| file_name(path)).collect();
        ui.fact("Stands on", &format!("{} ({})", names.join(", "), human(sizes.shared)));
    }
    for problem in problems {
        ui.notice(if *is_usable { Tone::Warning } else { Tone::Info }, "To know", problem, |_| ());
    }
    let disk = || Disk::File(path.to_path_buf());
    let refusal = (!is_usable).then_some("Convert it first: machines can't use it as it is");
    ui.horizontal_wrapped(|ui| {
        for (sign, label, reason, action) in [
            (icon::CONVERT, "Convert…", None, Action::AskConvert(path.to_path_buf())),
            (icon::ADD, "Grow…", refusal, Action::AskGrow(disk())),
            (icon::COMPACT, "Compact", refusal, Action::Answer(Request::Disk(disk(), DiskWork::Compact))),
            (icon::GOOD, "Check", refusal, Action::Answer(Request::Disk(disk(), DiskWork::Check))),
        ] {
            if ui.tool_button(Tone::Info, sign, label, reason).clicked() {
                view.ask(action);
            }
        }
    });
}

/// A text field with the keyboard. Says whether Enter was pressed in it.
fn typed_field(ui: &mut Ui, label: &str, typed: &mut String, note: Note<'_>) -> bool {
    let field = ui.field_row(label, note, |ui, id| form::text_field(ui, id, label, typed, "", 0.0));
    let enter = field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
    first_focus(ui, &field);
    enter
}

/// How large a disk is to be.
pub fn grow(ui: &mut Ui, view: &mut View<'_>, disk: Disk, name: &str, now: u64, mut typed: String, kept: bool) {
    ui.section(&format!("Grow {name}"));
    ui.muted(
        "The guest's partitions and file systems are then grown in the guest. A disk is never made smaller again.",
    );
    let wanted = typed.parse::<Size>();
    let size = match wanted {
        Ok(Size::To(size)) => Ok(size),
        Ok(Size::By(more)) => Ok(now.saturating_add(more)),
        Err(ref problem) => Err(problem.clone()),
    };
    let problem = match &size {
        Err(problem) => Some(problem.clone()),
        Ok(size) if *size <= now => Some(format!("It has {} already: write more", human(now))),
        Ok(size) if *size > MAX_DISK => Some(format!("A disk has at most {}", human(MAX_DISK))),
        Ok(_) => None,
    };
    let hint = format!("It has {} now. Write the new size, or how much more, like +10G", human(now));
    let note = Note::hint(&hint).or_error(problem.as_deref().filter(|_| !typed.is_empty()));
    let enter = typed_field(ui, "Size", &mut typed, note);
    if kept {
        ui.fine_print("A checkpoint is kept on its timeline first.");
    }
    let clicked = answers(ui, view, Tone::Good, icon::ADD, "Grow", problem.as_deref());
    if let (true, None, Ok(wanted)) = (clicked || enter, &problem, wanted) {
        view.ask(Action::Answer(Request::Disk(disk, DiskWork::Grow(wanted, First::Keep))));
    }
    if let Some(Dialog::Grow { typed: kept, .. }) = &mut view.state.dialog {
        *kept = typed;
    }
}

/// Where a copy goes, and what it is.
pub fn convert(ui: &mut Ui, view: &mut View<'_>, from: &Path, mut to: String, mut format: Format) {
    ui.section(&format!("Convert {}", file_name(from)));
    ui.muted("What is on it, with all that it stands on, is copied to a new file. The image itself stays.");
    let path = PathBuf::from(to.trim());
    let problem = match () {
        () if path == from => Some("This is the image itself: choose another name"),
        () if !path.is_absolute() || path.file_name().is_none() => {
            Some("Write a whole path, like /home/ann/disk.qcow2")
        }
        () => None,
    };
    let enter = typed_field(ui, "New file", &mut to, Note::NONE.or_error(problem));
    ui.field_row(
        "Format",
        Note::hint("A qcow2 image stays small wherever it is copied to; a raw one can be read by all programs"),
        |ui, _| {
            for choice in [Format::Qcow2, Format::Raw] {
                if ui.radio(format == choice, choice.name()).clicked() && format != choice {
                    to = path.with_extension(choice.name()).display().to_string();
                    format = choice;
                }
            }
        },
    );
    let clicked = answers(ui, view, Tone::Good, icon::CONVERT, "Convert", problem);
    if (clicked || enter) && problem.is_none() {
        view.ask(Action::Answer(Request::Convert(from.to_path_buf(), path, format)));
    }
    if let Some(Dialog::Convert(_, kept, kept_format)) = &mut view.state.dialog {
        (*kept, *kept_format) = (to, format);
    }
}

/// How large a new disk is to be.
pub fn add(ui: &mut Ui, view: &mut View<'_>, machine: String, mut bytes: u64) {
    ui.section(&format!("New disk for {machine}"));
    ui.muted("An empty disk is made in the folder of the machine, which has it at its next start.");
    let host = view.model.host.as_ref();
    let hint = form::new_disk_hint(bytes, host);
    let problem = wrong_size(0, bytes).map(|wrong| wrong.problem);
    ui.field_row("Size", Note::hint(&hint).or_error(problem.as_deref()), |ui, label| {
        form::new_disk(ui, label, &mut bytes, host, 0.0);
    });
    if answers(ui, view, Tone::Good, icon::ADD, "Add", problem.as_deref()) {
        view.ask(Action::Answer(Request::AddDisk(machine, bytes)));
    }
    if let Some(Dialog::AddDisk(_, kept)) = &mut view.state.dialog {
        *kept = bytes;
    }
}

/// Whether a machine's disk is to have another format.
pub fn switch(ui: &mut Ui, view: &mut View<'_>, machine: String, disk: usize, format: Format) {
    ui.section(&format!("Convert disk {} of {machine} to {}?", disk + 1, format.name()));
    ui.muted(
        "What is on it is copied and compared; the machine then goes on with the copy, and the old image goes. Until then the \
         host needs room for both. It can be cancelled at any time.",
    );
    if careful_answers(ui, view, Tone::Good, icon::CONVERT, "Convert", None) {
        view.ask(Action::Answer(Request::SwitchDisk(machine, disk, format)));
    }
}
