//! A machine's settings.

use std::path::{Path, PathBuf};

use egui::{Frame, Margin, Panel, Popup, Ui, WidgetInfo, WidgetType};
use vmm_core::backend::disk::Format;
use vmm_core::config::{Boot, CdromConfig, ConfigError, MAX_CDROMS, MAX_DISKS, VmConfig};

use super::{View, form, notices, shell};
use crate::jobs::Disk;
use crate::library::is_inside;
use crate::manager::action::{Action, DiskWork, Purpose, Request, disk_refusal};
use crate::manager::model::{DiskFacts, DiskSizes, Machine};
use crate::manager::state::Edit;
use crate::theme::{Note, Tone, UiExt, icon, size};

/// Draws the tab.
pub fn show(ui: &mut Ui, view: &mut View<'_>, machine: &Machine) {
    let t = ui.tokens();
    let Ok(kept) = &machine.config else {
        shell::page(ui, |ui| {
            notices::failures(ui, view);
            ui.muted("The settings can't be shown: this virtual machine's file can't be understood.");
        });
        return;
    };
    // Taken out while it is drawn, so that the rows can ask for actions.
    let mut edit = match view.state.edit.take() {
        Some(edit) if edit.name == machine.name && edit.is_changed() => edit,
        _ => Edit::new(&machine.name, kept),
    };
    // What it began with stays: settings that were changed meanwhile, by a snapshot perhaps, are not overwritten.
    let outdated = edit.kept != *kept;
    let errors = edit.config.validate().err().unwrap_or_default();
    let alive = machine.state.is_alive();
    if edit.is_changed() && !alive {
        let frame = Frame::new().fill(t.panel).inner_margin(Margin::symmetric(24, 12));
        Panel::bottom("save").frame(frame).show(ui, |ui| {
            ui.horizontal_wrapped(|ui| {
                let reason = match outdated {
                    true => Some("These settings were changed meanwhile: revert, and make your changes again"),
                    false => (!errors.is_empty()).then_some("Mend what is marked first"),
                };
                if ui.tool_button(Tone::Good, icon::GOOD, "Save changes", reason).clicked() {
                    view.ask(Action::Save);
                }
                if ui.tool_button(Tone::Info, "", "Revert", None).clicked() {
                    view.ask(Action::Revert);
                }
            });
        });
    }
    shell::page(ui, |ui| {
        ui.set_max_width(size::PAGE.min(ui.available_width()));
        notices::failures(ui, view);
        if alive {
            let text = "Shut it down to change its hardware. A CD can be changed at any time.";
            ui.notice(Tone::Info, "This virtual machine is running", text, |_| ());
        }
        if outdated {
            let text = "By a snapshot, or by another program. Revert, and make your changes again.";
            ui.notice(Tone::Warning, "These settings were changed meanwhile", text, |_| ());
        }
        ui.add_enabled_ui(!alive, |ui| {
            ui.card(|ui| {
                ui.section("Processor and memory");
                form::cpus(ui, &mut edit.config.cpus, view.model.host.as_ref(), &errors);
                // An arrangement of another number of CPUs is none.
                let cpus = Some(edit.config.cpus);
                edit.config.topology = edit.config.topology.filter(|topology| topology.cpus() == cpus);
                form::memory(ui, &mut edit.config.memory_mib, view.model.host.as_ref(), &errors);
            });
            ui.card(|ui| disks(ui, view, machine, &mut edit, &errors));
        });
        ui.card(|ui| drives(ui, view, machine, &mut edit.config, &errors, alive));
        ui.add_enabled_ui(!alive, |ui| {
            ui.card(|ui| {
                ui.section("Network");
                form::nets(ui, &mut edit.config.nets, &errors);
            });
            ui.card(|ui| {
                ui.section("Screen");
                form::display(ui, &mut edit.config.display, &errors);
            });
            ui.card(|ui| {
                ui.section("Start");
                start(ui, view, machine, &mut edit, &errors);
                form::tpm(ui, &mut edit.config.tpm);
            });
        });
    });
    view.state.edit = Some(edit);
}

fn start(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, edit: &mut Edit, errors: &[ConfigError]) {
    let secure = |config: &VmConfig| matches!(config.boot, Boot::Uefi { secure_boot: true, .. });
    let changed = matches!(edit.kept.boot, Boot::Uefi { .. }) && secure(&edit.config) != secure(&edit.kept);
    let hint = if changed { "Takes effect with new UEFI variables: save, then reset them" } else { "" };
    form::boot(ui, view, &mut edit.config.boot, hint, errors);
    if let Boot::Uefi { variables: Some(_), .. } = &edit.kept.boot {
        ui.field_row("UEFI variables", Note::hint("Boot entries, keys and the firmware's own settings"), |ui, _| {
            if ui.tool_button(Tone::Info, icon::RESET, "Reset variables…", None).clicked() {
                view.ask(Action::AskResetVariables(machine.name.clone()));
            }
        });
    }
}

fn disks(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, edit: &mut Edit, errors: &[ConfigError]) {
    ui.section("Disks");
    let mut gone = None;
    let changed = edit.is_changed();
    let kept = machine.config.as_ref().map_or(&edit.kept, |kept| kept).disks.clone();
    let config = &mut edit.config;
    for (i, disk) in config.disks.iter_mut().enumerate() {
        let label = format!("Disk {}", i + 1);
        // Of an image that is not the machine's yet nothing is known.
        let is_kept = kept.get(i).is_some_and(|kept| kept.path == disk.path);
        let facts = machine.disks.get(i).filter(|_| is_kept);
        let hint = facts.map(|facts| facts.sizes.as_ref().map_or_else(Clone::clone, DiskSizes::words));
        let hint = hint.unwrap_or_default();
        let note = Note::hint(&hint).or_error(form::error_of(errors, &format!("disks[{i}]")));
        ui.field_row(&label, note, |ui, id| {
            let mut text = disk.path.display().to_string();
            let beside = size::CHOOSE + size::CHECK + 2.0 * (size::CONTROL + size::GAP);
            if form::text_field(ui, id, &label, &mut text, "A disk image", beside).changed() {
                disk.path = PathBuf::from(text);
            }
            let choose = ui.tool_button(Tone::Info, icon::OPEN, "Choose…", None);
            choose.widget_info(|| WidgetInfo::labeled(WidgetType::Button, ui.is_enabled(), format!("Choose: {label}")));
            if choose.clicked() {
                view.ask(Action::Pick(Purpose::Disk(i)));
            }
            ui.checkbox(&mut disk.readonly, "Read only");
            if ui.icon_button(icon::TRASH, &format!("Detach: {label}")).clicked() {
                gone = Some(i);
            }
            if let Some(DiskFacts { path, sizes: Ok(sizes) }) = facts {
                work(ui, view, machine, (i, path), sizes.format, changed);
            }
        });
    }
    if let Some(i) = gone {
        config.disks.remove(i);
    }
    let note = if config.disks.is_empty() { Note::hint("No hard disk") } else { Note::NONE };
    ui.field_row(
        "",
        note.or_error(form::error_of(errors, "disks").filter(|_| config.disks.len() > MAX_DISKS)),
        |ui, _| {
            let full = (config.disks.len() >= MAX_DISKS).then_some("It has as many disks as a machine can have");
            if ui.tool_button(Tone::Info, icon::ADD, "New disk…", full.or(refusal(view, machine, changed))).clicked()
            {
                view.ask(Action::AskAddDisk(machine.name.clone()));
            }
            if ui.tool_button(Tone::Info, icon::OPEN, "Attach a disk image…", full).clicked() {
                view.ask(Action::Pick(Purpose::Disk(config.disks.len())));
            }
        },
    );
    if !config.disks.is_empty() && ui.fold("controllers", "Controllers") {
        for (i, disk) in config.disks.iter_mut().enumerate() {
            form::disk_bus(ui, i, &mut disk.bus, errors);
        }
    }
}

/// Why nothing is done to its disks now, apart from changes of its settings.
fn refusal(view: &View<'_>, machine: &Machine, changed: bool) -> Option<&'static str> {
    if changed { Some("Save the changes first, or revert them") } else { disk_refusal(view.model, machine) }
}

/// What can be done to a disk's image: its place among the machine's, its file, and the name of its format.
fn work(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, (i, image): (usize, &Path), format: &str, changed: bool) {
    let button = ui.icon_button(icon::MORE, &format!("More: Disk {}", i + 1));
    let disk = || Disk::Of { machine: machine.name.clone(), disk: i };
    let refusal = refusal(view, machine, changed);
    let (label, other) = match format {
        "raw" => ("Convert to qcow2…", Format::Qcow2),
        _ => ("Convert to raw…", Format::Raw),
    };
    let outside = "It is not in this machine's folder: Tools, Disk images makes another of it";
    let outside = (!is_inside(&machine.folder, image)).then_some(outside);
    let rows = [
        (icon::ADD, "Grow…", Action::AskGrow(disk()), refusal),
        (icon::COMPACT, "Compact", Action::Answer(Request::Disk(disk(), DiskWork::Compact)), refusal),
        (icon::GOOD, "Check", Action::Answer(Request::Disk(disk(), DiskWork::Check)), refusal),
        (icon::CONVERT, label, Action::AskSwitch(machine.name.clone(), i, other), refusal.or(outside)),
    ];
    Popup::menu(&button).show(|ui| {
        for (sign, label, action, refusal) in rows {
            if ui.menu_item(sign, label, "", refusal).clicked() {
                view.ask(action);
                ui.close();
            }
        }
    });
}

fn drives(
    ui: &mut Ui,
    view: &mut View<'_>,
    machine: &Machine,
    config: &mut VmConfig,
    errors: &[ConfigError],
    alive: bool,
) {
    ui.section("CD-ROM");
    if alive {
        // What is in the drives of a running machine, and not what its file says for the next start.
        let now = machine.drives.clone().unwrap_or_default();
        for (drive, medium) in now.iter().enumerate() {
            live_drive(ui, view, drive, medium.as_deref());
        }
        if now.is_empty() {
            ui.muted("This machine has no CD-ROM drive.");
        }
        return;
    }
    for drive in 0..config.cdroms.len() {
        let medium = config.cdroms[drive].path.clone();
        if let Some(new) = form::cdrom(ui, view, drive, medium.as_deref(), errors) {
            config.cdroms[drive].path = new;
        }
    }
    ui.field_row("", Note::NONE, |ui, _| {
        let full = (config.cdroms.len() >= MAX_CDROMS).then_some("It has as many drives as a machine can have");
        if ui.tool_button(Tone::Info, icon::ADD, "Add a drive", full).clicked() {
            config.cdroms.push(CdromConfig::default());
        }
        if !config.cdroms.is_empty() && ui.tool_button(Tone::Info, icon::TRASH, "Remove the last", None).clicked() {
            config.cdroms.pop();
        }
    });
}

fn live_drive(ui: &mut Ui, view: &mut View<'_>, drive: usize, medium: Option<&std::path::Path>) {
    let label = if drive == 0 { "CD drive".to_string() } else { format!("CD drive {}", drive + 1) };
    ui.field_row(&label, Note::NONE, |ui, _| {
        let words = medium.map_or("Empty".to_string(), super::machine::file_name);
        ui.add(egui::Label::new(words).truncate());
        let insert = if medium.is_some() { "Change…" } else { "Insert…" };
        let change = ui.tool_button(Tone::Info, icon::CD, insert, None);
        change.widget_info(|| WidgetInfo::labeled(WidgetType::Button, true, format!("{insert}: {label}")));
        if change.clicked() {
            view.ask(Action::Pick(Purpose::Medium(drive)));
        }
        if medium.is_some() && ui.tool_button(Tone::Info, icon::EJECT, "Eject", None).clicked() {
            view.ask(Action::Eject(drive));
        }
    });
}
