//! The rows that the page of a new machine and the settings of an old one share.

use std::path::{Path, PathBuf};

use egui::{Id, Ui, WidgetInfo, WidgetType};
use vmm_core::config::{Boot, ConfigError, DiskBus, DisplayConfig, NetConfig};

use super::View;
use crate::library::size::{human, parse};
use crate::library::{Firmware, HostLimits};
use crate::manager::action::{Action, Purpose};
use crate::theme::{Amount, Note, Tone, UiExt, icon, size, text_edit};

/// What is wrong with a field or with a part of it.
pub fn error_of<'a>(errors: &'a [ConfigError], field: &str) -> Option<&'a str> {
    let here = |error: &&ConfigError| {
        error.field.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    errors.iter().find(here).map(|error| error.problem.as_str())
}

/// A text field of the width a form has room for; `beside` is what stands at its right.
pub fn text_field(ui: &mut Ui, label: Id, name: &str, text: &mut String, hint: &str, beside: f32) -> egui::Response {
    let room = ui.available_width();
    // Where both do not fit, what is beside goes below.
    let width = if room - beside >= size::FIELD_MIN { room - beside } else { room };
    let width = width.min(size::FIELD);
    let response = ui.add(text_edit(text).hint_text(hint).desired_width(width)).labelled_by(label);
    let value = text.clone();
    response.widget_info(|| {
        let mut info = WidgetInfo::text_edit(ui.is_enabled(), value.clone(), value.clone(), hint);
        info.label = Some(name.to_string());
        info
    });
    response
}

/// A path: typed, or chosen with the button beside it. The answer is the field's.
pub fn path_field(
    ui: &mut Ui,
    view: &mut View<'_>,
    label: Id,
    name: &str,
    path: &mut PathBuf,
    hint: &str,
    purpose: Purpose,
) -> egui::Response {
    let mut text = path.display().to_string();
    let field = text_field(ui, label, name, &mut text, hint, size::CHOOSE);
    if field.changed() {
        *path = PathBuf::from(text);
    }
    let choose = ui.tool_button(Tone::Info, icon::OPEN, "Choose…", None);
    choose.widget_info(|| WidgetInfo::labeled(WidgetType::Button, ui.is_enabled(), format!("Choose: {name}")));
    if choose.clicked() {
        view.ask(Action::Pick(purpose));
    }
    field
}

/// CPUs.
pub fn cpus(ui: &mut Ui, cpus: &mut u32, host: Option<&HostLimits>, errors: &[ConfigError]) {
    let most = host.map_or(1, HostLimits::max_cpus);
    let hint = match most {
        1 => "This host has one CPU".to_string(),
        most if *cpus > most => format!("More than the {most} CPUs of this host: it will be slow"),
        most => format!("This host has {most}"),
    };
    let note = Note::hint(&hint).or_error(error_of(errors, "cpus"));
    ui.field_row("CPUs", note, |ui, label| {
        let amount = Amount {
            name: "CPUs",
            range: 1.0..=f64::from(most.max(2)),
            step: 1.0,
            logarithmic: false,
            format: |cpus| format!("{cpus}"),
            parse: |text| text.trim().parse().ok(),
            beside: 0.0,
        };
        let mut value = f64::from(*cpus);
        if amount.show(ui, label, &mut value) {
            *cpus = value.round().max(0.0) as u32;
        }
    });
}

/// Memory.
pub fn memory(ui: &mut Ui, mib: &mut u64, host: Option<&HostLimits>, errors: &[ConfigError]) {
    let most = host.map_or(4096, HostLimits::max_memory_mib);
    let hint = match host {
        Some(host) if *mib > host.max_memory_mib() => {
            format!("More than the {} that this host can give", human(host.max_memory_mib() << 20))
        }
        Some(host) => {
            format!(
                "This host has {}, {} free now",
                human(host.memory_mib << 20),
                human(host.memory_available_mib << 20)
            )
        }
        None => String::new(),
    };
    let note = Note::hint(&hint).or_error(error_of(errors, "memory_mib"));
    ui.field_row("Memory", note, |ui, label| {
        let amount = Amount {
            name: "Memory",
            range: 128.0..=most.max(256) as f64,
            step: 128.0,
            logarithmic: true,
            format: |mib| memory_words(mib.max(0.0) as u64),
            // A plain number is MiB.
            parse: |text| text.trim().parse().ok().or_else(|| parse(text).ok().map(|bytes| (bytes >> 20) as f64)),
            beside: 0.0,
        };
        let mut value = *mib as f64;
        if amount.show(ui, label, &mut value) {
            *mib = value.round().max(0.0) as u64;
        }
    });
}

/// Memory as its number field shows it: exactly.
fn memory_words(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

/// The size of a new disk.
pub fn new_disk(ui: &mut Ui, label: Id, bytes: &mut u64, host: Option<&HostLimits>, beside: f32) {
    const GIB: f64 = (1u64 << 30) as f64;
    let amount = Amount {
        name: "Size of the new disk",
        range: 1.0..=host.map_or(64.0, |host| host.space as f64 / GIB).max(16.0),
        step: 1.0,
        logarithmic: true,
        format: |gib| human((gib.max(0.0) * GIB) as u64),
        // A plain number is GiB.
        parse: |text| text.trim().parse().ok().or_else(|| parse(text).ok().map(|bytes| bytes as f64 / GIB)),
        beside,
    };
    let mut gib = *bytes as f64 / GIB;
    if amount.show(ui, label, &mut gib) {
        // Whole sectors.
        *bytes = (gib.max(0.0) * GIB) as u64 / 512 * 512;
    }
}

/// What stands below a new disk's slider.
pub fn new_disk_hint(bytes: u64, host: Option<&HostLimits>) -> String {
    match host {
        Some(host) if bytes > host.space => {
            format!("Thin, and more than the {} that are free now: it can't be filled", human(host.space))
        }
        Some(host) => format!("Thin: takes only what the guest writes. {} are free", human(host.space)),
        None => String::new(),
    }
}

/// The controller that a disk is behind.
pub fn disk_bus(ui: &mut Ui, index: usize, bus: &mut DiskBus, errors: &[ConfigError]) {
    let label = format!("Disk {}", index + 1);
    let note = Note::NONE.or_error(error_of(errors, &format!("disks[{index}].bus")));
    ui.field_row(&label, note, |ui, _| {
        for choice in DiskBus::ALL {
            let enabled = ui.is_enabled();
            let radio = ui.radio_value(bus, choice, choice.title());
            let name = format!("{label}: {}", choice.title());
            radio.widget_info(|| WidgetInfo::selected(WidgetType::RadioButton, enabled, *bus == choice, &name));
        }
    });
}

/// The network cards.
pub fn nets(ui: &mut Ui, nets: &mut Vec<NetConfig>, errors: &[ConfigError]) {
    let mut gone = None;
    for (i, net) in nets.iter_mut().enumerate() {
        let error = error_of(errors, &format!("nets[{i}]"));
        let note =
            Note::hint("The name of a tap interface that exists on this host; empty: not plugged in").or_error(error);
        ui.field_row("Network", note, |ui, label| {
            let name = format!("Tap interface of network card {}", i + 1);
            let mut tap = net.tap.take().unwrap_or_default();
            text_field(ui, label, &name, &mut tap, "Not plugged in", size::CONTROL + size::GAP);
            net.tap = (!tap.is_empty()).then_some(tap);
            if ui.icon_button(icon::TRASH, &format!("Remove network card {}", i + 1)).clicked() {
                gone = Some(i);
            }
        });
    }
    if let Some(i) = gone {
        nets.remove(i);
    }
    let label = if nets.is_empty() { "Network" } else { "" };
    let note = if nets.is_empty() { Note::hint("No network: the guest is isolated") } else { Note::NONE };
    ui.field_row(label, note.or_error(error_of(errors, "nets").filter(|_| nets.is_empty())), |ui, _| {
        let full = (nets.len() >= vmm_core::config::MAX_NETS).then_some("It has as many cards as a machine can have");
        if ui.tool_button(Tone::Info, icon::ADD, "Add a network card", full).clicked() {
            nets.push(NetConfig { tap: None, mac: None });
        }
    });
}

/// The screen that the guest is offered first.
pub fn display(ui: &mut Ui, display: &mut DisplayConfig, errors: &[ConfigError]) {
    let note = Note::hint("Width and height in pixels that the guest is offered first");
    ui.field_row("Screen", note.or_error(error_of(errors, "display")), |ui, _| {
        ui.spacing_mut().interact_size.x = size::NUMBER;
        for (value, name) in [(&mut display.width, "Screen width"), (&mut display.height, "Screen height")] {
            let shown = f64::from(*value);
            let response = ui.add(egui::DragValue::new(value).speed(8).suffix(" px"));
            let enabled = ui.is_enabled();
            response.widget_info(|| WidgetInfo::slider(enabled, shown, name));
        }
    });
}

/// The TPM.
pub fn tpm(ui: &mut Ui, tpm: &mut bool) {
    let note = Note::hint("Keeps keys for the guest, as Windows 11 and measured boot want it. Needs the program swtpm");
    ui.field_row("Security", note, |ui, _| {
        ui.checkbox(tpm, "TPM 2.0");
    });
}

/// What the machine starts with: firmware, or a kernel without it. `hint` says why, where that needs saying.
pub fn boot(ui: &mut Ui, view: &mut View<'_>, boot: &mut Boot, hint: &str, errors: &[ConfigError]) {
    let now = Firmware::of(boot);
    let note = Note::hint(hint).or_error(error_of(errors, "boot").filter(|_| now.is_some()));
    ui.field_row("Starts with", note, |ui, _| {
        for firmware in Firmware::ALL {
            let chosen = now == Some(firmware);
            if ui.radio(chosen, firmware.label()).clicked() && !chosen {
                *boot = with_firmware(firmware, boot);
            }
        }
        let kernel = ui.radio(now.is_none(), "Kernel").on_hover_text("A Linux kernel, loaded without firmware");
        if kernel.clicked() && now.is_some() {
            *boot = Boot::Kernel { kernel: PathBuf::new(), initrd: None, cmdline: String::new() };
        }
    });
    if let Boot::Uefi { menu, .. } = boot {
        ui.field_row("", Note::NONE, |ui, _| {
            ui.checkbox(menu, "Wait five seconds for Esc, which opens the firmware's menu");
        });
    }
    let Boot::Kernel { kernel, initrd, cmdline } = boot else { return };
    let note = Note::NONE.or_error(error_of(errors, "boot.kernel"));
    ui.field_row("Kernel", note, |ui, label| {
        path_field(ui, view, label, "Kernel", kernel, "A bzImage or ELF file", Purpose::Kernel);
    });
    ui.field_row("Initial RAM disk", Note::NONE.or_error(error_of(errors, "boot.initrd")), |ui, label| {
        let mut path = initrd.clone().unwrap_or_default();
        if path_field(ui, view, label, "Initial RAM disk", &mut path, "None", Purpose::Initrd).changed() {
            *initrd = Some(path).filter(|path| !path.as_os_str().is_empty());
        }
    });
    ui.field_row("Command line", Note::NONE.or_error(error_of(errors, "boot.cmdline")), |ui, label| {
        text_field(ui, label, "Kernel command line", cmdline, "console=ttyS0", 0.0);
    });
}

/// Another firmware, with what both have in common.
fn with_firmware(firmware: Firmware, old: &Boot) -> Boot {
    let mut new = firmware.boot();
    if let (
        Boot::Uefi { variables, menu, secure_boot: _ },
        Boot::Uefi { variables: old_variables, menu: old_menu, secure_boot: _ },
    ) = (&mut new, old)
    {
        variables.clone_from(old_variables);
        *menu = *old_menu;
    }
    new
}

/// A CD-ROM drive: what is in it, and ways to change that. The answer is the new medium.
pub fn cdrom(
    ui: &mut Ui,
    view: &mut View<'_>,
    drive: usize,
    medium: Option<&Path>,
    errors: &[ConfigError],
) -> Option<Option<PathBuf>> {
    let label = if drive == 0 { "CD drive".to_string() } else { format!("CD drive {}", drive + 1) };
    let error = error_of(errors, &format!("cdroms[{drive}]"));
    let mut new = None;
    ui.field_row(&label, Note::NONE.or_error(error), |ui, id| {
        let mut path = medium.map(Path::to_path_buf).unwrap_or_default();
        let eject = if medium.is_some() { size::CONTROL + size::GAP } else { 0.0 };
        let mut text = path.display().to_string();
        if text_field(ui, id, &label, &mut text, "Empty", size::CHOOSE + eject).changed() {
            path = PathBuf::from(text);
            new = Some(Some(path).filter(|path| !path.as_os_str().is_empty()));
        }
        let choose = ui.tool_button(Tone::Info, icon::OPEN, "Choose…", None);
        choose.widget_info(|| WidgetInfo::labeled(WidgetType::Button, true, format!("Choose: {label}")));
        if choose.clicked() {
            view.ask(Action::Pick(Purpose::Medium(drive)));
        }
        if medium.is_some() && ui.icon_button(icon::EJECT, &format!("Eject: {label}")).clicked() {
            new = Some(None);
        }
    });
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_belongs_to_its_field_and_to_what_holds_it() {
        let errors = [ConfigError { field: "disks[1].path".into(), problem: "x".into() }];
        assert_eq!(error_of(&errors, "disks[1]"), Some("x"));
        assert_eq!(error_of(&errors, "disks"), Some("x"));
        assert_eq!(error_of(&errors, "disks[1].path"), Some("x"));
        assert_eq!(error_of(&errors, "disks[10]"), None);
        assert_eq!(error_of(&errors, "disk"), None);
    }

    #[test]
    fn memory_is_shown_exactly() {
        assert_eq!(memory_words(4096), "4 GiB");
        assert_eq!(memory_words(1792), "1792 MiB");
        assert_eq!(memory_words(512), "512 MiB");
    }
}
