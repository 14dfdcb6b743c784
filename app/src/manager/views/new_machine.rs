//! *New virtual machine*: one page, nothing on it that must be filled in.

use std::path::PathBuf;

use egui::{Frame, Id, Margin, Panel, Ui, WidgetInfo, WidgetType};
use vmm_core::config::{ConfigError, MAX_CDROMS, MAX_DISKS};

use super::{View, form, machine::file_name, notices, shell};
use crate::library::{Firmware, HostLimits, NewDisk};
use crate::manager::action::{Action, Purpose};
use crate::manager::state::Draft;
use crate::theme::{Note, Tone, UiExt, icon, size};

/// Draws the page.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    let t = ui.tokens();
    let modal = view.state.is_modal();
    // Taken out while it is drawn, so that the rows can ask for actions.
    let Some(mut draft) = view.state.draft.take() else {
        shell::central(ui, |ui| {
            shell::page(ui, |ui| {
                ui.muted("Looking at what this host has…");
            });
        });
        return;
    };
    let errors = draft.errors(&view.model.names());
    let blocked = view.model.checks.iter().any(|check| check.fatal);
    let frame = Frame::new().fill(t.panel).inner_margin(Margin::symmetric(0, 12));
    Panel::bottom("create").frame(frame).show(ui, |ui| {
        ui.add_enabled_ui(!modal, |ui| {
            shell::column(ui, |ui| {
                ui.horizontal_wrapped(|ui| {
                    let wrong = (!errors.is_empty()).then_some("Mend what is marked first");
                    let waiting = matches!(draft.source, Some((_, None))).then_some("The file is being looked at");
                    let making = draft.making.then_some("It is being made");
                    let reason = wrong.or(waiting).or(making);
                    let blocked = blocked.then_some("This host can't run virtual machines yet: see the notice above");
                    if ui.tool_button(Tone::Good, icon::START, "Create and start", reason.or(blocked)).clicked() {
                        view.ask(Action::Create { start: true });
                    }
                    if ui.tool_button(Tone::Info, "", "Create", reason).clicked() {
                        view.ask(Action::Create { start: false });
                    }
                    if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
                        view.ask(Action::Leave);
                    }
                });
            });
        });
    });
    shell::central(ui, |ui| {
        ui.add_enabled_ui(!modal, |ui| shell::column_page(ui, |ui| body(ui, view, &mut draft, &errors)));
    });
    view.state.draft = Some(draft);
}

fn body(ui: &mut Ui, view: &mut View<'_>, draft: &mut Draft, errors: &[ConfigError]) {
    let host = view.model.host;
    ui.horizontal(|ui| {
        if ui.icon_button(icon::BACK, "Back to the library").clicked() {
            view.ask(Action::Leave);
        }
        ui.title("New virtual machine");
    });
    notices::failures(ui, view);
    notices::checks(ui, view);
    source(ui, view, draft);
    ui.card(|ui| {
        let note = Note::NONE.or_error(form::error_of(errors, "name"));
        ui.field_row("Name", note, |ui, label| {
            if form::text_field(ui, label, "Name", &mut draft.new.name, "", 0.0).changed() {
                draft.named = true;
            }
        });
        form::cpus(ui, &mut draft.new.cpus, host.as_ref(), errors);
        form::memory(ui, &mut draft.new.memory_mib, host.as_ref(), errors);
        disks(ui, view, draft, host.as_ref(), errors);
    });
    ui.card(|ui| {
        if ui.fold("advanced", "More settings") {
            advanced(ui, view, draft, errors);
        }
    });
}

/// What it is made from.
fn source(ui: &mut Ui, view: &mut View<'_>, draft: &Draft) {
    let choose = |ui: &mut Ui, view: &mut View<'_>, label: &str| {
        if ui.tool_button(Tone::Info, icon::OPEN, label, None).clicked() {
            view.ask(Action::Pick(Purpose::Open));
        }
    };
    match &draft.source {
        None => {
            let text = "Choose an ISO to install from, a disk image or a kernel, or go on without.";
            ui.notice(Tone::Info, "No file chosen", text, |ui| choose(ui, view, "Choose a file…"));
        }
        Some((path, None)) => {
            ui.notice(Tone::Info, &file_name(path), "Looking at what it is…", |_| ());
        }
        Some((_, Some(Ok(medium)))) => {
            let (tone, text) = match medium.warning() {
                Some(warning) => (Tone::Warning, format!("{}\n{warning}", medium.describe())),
                None => (Tone::Good, medium.describe()),
            };
            ui.notice(tone, &file_name(&medium.path), &text, |ui| choose(ui, view, "Choose another…"));
        }
        Some((_, Some(Err(failure)))) => {
            ui.notice(Tone::Error, &failure.what, &failure.cause, |ui| choose(ui, view, "Choose another…"));
        }
    }
}

fn disks(ui: &mut Ui, view: &mut View<'_>, draft: &mut Draft, host: Option<&HostLimits>, errors: &[ConfigError]) {
    let disks = &mut draft.new.disks;
    let mut gone = None;
    for (i, disk) in disks.iter_mut().enumerate() {
        let label = if i == 0 { "Disk".to_string() } else { format!("Disk {}", i + 1) };
        let hint = match disk {
            NewDisk::Create { size, .. } => form::new_disk_hint(*size, host),
            NewDisk::Existing { readonly: true, .. } => "The guest may only read it".into(),
            NewDisk::Existing { .. } => "The guest writes to this file itself, where it is".into(),
        };
        let note = Note::hint(&hint).or_error(form::error_of(errors, &format!("disks[{i}]")));
        ui.field_row(&label, note, |ui, id| {
            let remove = size::CONTROL + size::GAP;
            match disk {
                NewDisk::Create { size, .. } => form::new_disk(ui, id, size, host, remove),
                NewDisk::Existing { path, readonly, .. } => existing(ui, view, id, &label, i, path, readonly),
            }
            if ui.icon_button(icon::TRASH, &format!("Remove: {label}")).clicked() {
                gone = Some(i);
            }
        });
    }
    if let Some(i) = gone {
        disks.remove(i);
    }
    let none = disks.is_empty();
    let note = if none { Note::hint("No disk: what the guest writes is gone when it stops") } else { Note::NONE };
    ui.field_row(if none { "Disk" } else { "" }, note, |ui, _| {
        let full = (disks.len() >= MAX_DISKS).then_some("It has as many disks as a machine can have");
        if ui.tool_button(Tone::Info, icon::ADD, "New disk", full).clicked() {
            disks.push(NewDisk::create(view.model.default_disk()));
        }
        if ui.tool_button(Tone::Info, icon::OPEN, "Disk image…", full).clicked() {
            view.ask(Action::Pick(Purpose::Disk(disks.len())));
        }
    });
}

fn existing(
    ui: &mut Ui,
    view: &mut View<'_>,
    id: Id,
    label: &str,
    index: usize,
    path: &mut PathBuf,
    readonly: &mut bool,
) {
    let mut text = path.display().to_string();
    let beside = size::CHOOSE + size::CHECK + size::CONTROL + size::GAP;
    if form::text_field(ui, id, label, &mut text, "A raw disk image", beside).changed() {
        *path = PathBuf::from(text);
    }
    let choose = ui.tool_button(Tone::Info, icon::OPEN, "Choose…", None);
    choose.widget_info(|| WidgetInfo::labeled(WidgetType::Button, true, format!("Choose: {label}")));
    if choose.clicked() {
        view.ask(Action::Pick(Purpose::Disk(index)));
    }
    ui.checkbox(readonly, "Read only");
}

fn advanced(ui: &mut Ui, view: &mut View<'_>, draft: &mut Draft, errors: &[ConfigError]) {
    for (i, disk) in draft.new.disks.iter_mut().enumerate() {
        form::disk_bus(ui, i, disk.bus_mut(), errors);
    }
    for drive in 0..draft.new.cdroms.len() {
        let medium = draft.new.cdroms[drive].clone();
        if let Some(new) = form::cdrom(ui, view, drive, medium.as_deref(), errors) {
            draft.new.cdroms[drive] = new;
        }
    }
    ui.field_row("", Note::NONE, |ui, _| {
        let full = (draft.new.cdroms.len() >= MAX_CDROMS).then_some("It has as many drives as a machine can have");
        if ui.tool_button(Tone::Info, icon::ADD, "Add a CD drive", full).clicked() {
            draft.new.cdroms.push(None);
        }
    });
    form::nets(ui, &mut draft.new.nets, errors);
    form::display(ui, &mut draft.new.display, errors);
    let medium = match &draft.source {
        Some((_, Some(Ok(medium)))) => Some(&medium.kind),
        _ => None,
    };
    let firmware = Firmware::of(&draft.new.boot);
    let remark = firmware.zip(view.model.host).and_then(|(firmware, host)| firmware.remark(medium, host.uefi));
    form::boot(ui, view, &mut draft.new.boot, remark.unwrap_or_default(), errors);
    form::tpm(ui, &mut draft.new.tpm);
}
