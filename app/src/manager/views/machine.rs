//! A machine's page: its name, its power verbs, its tabs, and the overview.

use egui::{Frame, Layout, Margin, Panel, Popup, Sense, Ui, WidgetInfo, WidgetType, vec2};
use vmm_core::config::{Boot, VmConfig};

use super::{View, hardware, log, notices, shell, snapshots};
use crate::library::size::human;
use crate::manager::action::{Action, Command};
use crate::manager::model::{DiskSizes, Machine, State};
use crate::manager::state::Tab;
use crate::theme::{Tone, UiExt, focus_ring, icon, size};

/// Draws the selected machine.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    let t = ui.tokens();
    let modal = view.state.is_modal();
    let selected = view.state.selected.clone().unwrap_or_default();
    let model = view.model;
    let Some(machine) = model.machine(&selected) else {
        shell::central(ui, |ui| {
            shell::page(ui, |ui| {
                notices::failures(ui, view);
                notices::checks(ui, view);
                ui.muted("Select a virtual machine at the left.");
            });
        });
        return;
    };
    let frame = Frame::new().fill(t.window).inner_margin(Margin { left: 24, right: 24, top: 16, bottom: 0 });
    Panel::top("machine").frame(frame).show(ui, |ui| {
        ui.add_enabled_ui(!modal, |ui| header(ui, view, machine));
    });
    shell::central(ui, |ui| {
        ui.add_enabled_ui(!modal, |ui| match view.state.tab {
            Tab::Overview => shell::page(ui, |ui| {
                notices::failures(ui, view);
                notices::checks(ui, view);
                overview(ui, view, machine);
            }),
            Tab::Snapshots => snapshots::show(ui, view, machine),
            Tab::Hardware => hardware::show(ui, view, machine),
            Tab::Log => log::show(ui, view, machine),
        });
    });
}

fn header(ui: &mut Ui, view: &mut View<'_>, machine: &Machine) {
    let t = ui.tokens();
    let wide = ui.available_width() > size::NARROW;
    let names = |ui: &mut Ui| {
        ui.title(&machine.name);
        ui.state_sign(machine.state.shape(), machine.state.color(t), machine.state.word());
    };
    if wide {
        ui.horizontal(|ui| {
            ui.with_layout(Layout::right_to_left(egui::Align::Center), |ui| {
                let mut verbs = ui.new_child(
                    egui::UiBuilder::new().max_rect(ui.max_rect()).layout(Layout::right_to_left(egui::Align::Center)),
                );
                power_verbs(&mut verbs, view, machine, true);
                let left = verbs.min_rect().left() - size::GAP_LARGE;
                let mut words = ui.max_rect();
                words.max.x = left;
                ui.scope_builder(
                    egui::UiBuilder::new().max_rect(words).layout(Layout::top_down(egui::Align::Min)),
                    |ui| {
                        ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
                        names(ui);
                    },
                );
            });
        });
    } else {
        names(ui);
        ui.horizontal_wrapped(|ui| power_verbs(ui, view, machine, false));
    }
    ui.add_space(size::GAP_SMALL);
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = vec2(size::GAP_PAGE, 0.0);
        for tab in Tab::ALL {
            let response = ui.tab(view.state.tab == tab, tab.label());
            if response.clicked() {
                view.ask(Action::Show(tab));
            }
        }
    });
}

/// The verbs, always in the same places: what starts it, what stops it softly, what holds it, and the rest.
fn power_verbs(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, backwards: bool) {
    let first = if machine.state.is_alive() && !machine.headless { Command::Console } else { Command::Start };
    let hold = if matches!(machine.state, State::Paused | State::Suspended) { Command::Resume } else { Command::Pause };
    let verbs: [(Command, Tone); 3] = match machine.state {
        State::Paused | State::Suspended => [(first, Tone::Info), (Command::ShutDown, Tone::Info), (hold, Tone::Good)],
        // What can't be used does not stand out.
        _ if first.refusal(view.model, view.state).is_some() => {
            [(first, Tone::Info), (Command::ShutDown, Tone::Info), (hold, Tone::Info)]
        }
        _ => [(first, Tone::Good), (Command::ShutDown, Tone::Info), (hold, Tone::Info)],
    };
    if backwards {
        more(ui, view);
        for (command, tone) in verbs.into_iter().rev() {
            view.command_button(ui, command, tone);
        }
    } else {
        for (command, tone) in verbs {
            view.command_button(ui, command, tone);
        }
        more(ui, view);
    }
}

fn more(ui: &mut Ui, view: &mut View<'_>) {
    let button = ui.icon_button(icon::MORE, "More");
    Popup::menu(&button).show(|ui| {
        view.command_item(ui, Command::Suspend);
        view.command_item(ui, Command::PowerOff);
        view.command_item(ui, Command::Reset);
        ui.separator();
        view.command_item(ui, Command::TakeSnapshot);
        view.command_item(ui, Command::Fork);
        view.command_item(ui, Command::Clone);
        ui.separator();
        view.command_item(ui, Command::Settings);
        view.command_item(ui, Command::Rename);
        view.command_item(ui, Command::Delete);
    });
}

fn overview(ui: &mut Ui, view: &mut View<'_>, machine: &Machine) {
    if let Some(problem) = &machine.problem {
        let title = if machine.state == State::Paused { "Paused, so that nothing is lost" } else { "A problem" };
        ui.notice(Tone::Warning, title, problem, |_| ());
    }
    let config = match &machine.config {
        Ok(config) => config,
        Err(problem) => {
            ui.notice(Tone::Error, "This virtual machine's file can't be understood", problem, |ui| {
                ui.fine_print(
                    "Mend the file, or move its folder away. The other machines are not affected. Its folder:",
                );
                ui.command_line(&machine.folder.display().to_string());
            });
            return;
        }
    };
    let room = ui.available_width();
    let beside = room > size::NARROW;
    let width = if beside { room * 0.6 } else { room };
    let height = (width * 0.625).min(size::PICTURE_HEIGHT);
    let screen = vec2(width, height);
    if beside {
        ui.with_layout(Layout::left_to_right(egui::Align::TOP), |ui| {
            ui.spacing_mut().item_spacing.x = size::GAP_LARGE;
            picture(ui, view, machine, screen);
            ui.vertical(|ui| ui.card(|ui| facts(ui, machine, config)));
        });
    } else {
        picture(ui, view, machine, screen);
        ui.card(|ui| facts(ui, machine, config));
    }
    ui.add_space(size::GAP);
    ui.card(|ui| disks(ui, machine));
}

fn picture(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, screen: egui::Vec2) {
    let texture = view.pictures.get(&machine.name).filter(|_| machine.state.has_picture());
    let response = match texture {
        Some(texture) => {
            let (rect, response) = ui.allocate_exact_size(screen, Sense::click());
            let label = format!("The screen of {}", machine.name);
            response.widget_info(|| WidgetInfo::labeled(WidgetType::Image, true, &label));
            ui.picture(rect, Some(texture));
            focus_ring(ui, &response, size::RADIUS_PICTURE);
            response
        }
        None => {
            let (sign, word) = match machine.state {
                State::Stopped => (icon::START, "Stopped. Click to start."),
                State::Suspended => (icon::SUSPEND, "Suspended. Click to go on."),
                State::Starting => (icon::MONITOR, "Starting…"),
                _ => (icon::MONITOR, "The screen is off."),
            };
            ui.dark_screen(screen, sign, word)
        }
    };
    if response.clicked() {
        view.ask(Action::Activate(machine.name.clone()));
    }
    response.on_hover_cursor(egui::CursorIcon::PointingHand);
}

fn facts(ui: &mut Ui, machine: &Machine, config: &VmConfig) {
    ui.section("Machine");
    ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
    ui.fact("CPUs", &config.cpus.to_string());
    ui.fact("Memory", &human(config.memory_mib << 20));
    let boot = match &config.boot {
        Boot::Bios => "BIOS: CD, then disks".to_string(),
        Boot::Uefi { secure_boot: false, .. } => "UEFI".to_string(),
        Boot::Uefi { secure_boot: true, .. } => "UEFI with Secure Boot".to_string(),
        Boot::Kernel { kernel, .. } => format!("Kernel {}", file_name(kernel)),
    };
    ui.fact("Starts from", &boot);
    for drive in &config.cdroms {
        ui.fact("CD drive", &drive.path.as_deref().map_or("Empty".to_string(), file_name));
    }
    if config.nets.is_empty() {
        ui.fact("Network", "None");
    }
    for net in &config.nets {
        ui.fact(
            "Network",
            &net.tap.as_ref().map_or_else(|| "Not plugged in".into(), |tap| format!("Bridged to {tap}")),
        );
    }
    if config.tpm {
        ui.fact("TPM", "2.0");
    }
    ui.fact("Screen", &format!("{} × {}", config.display.width, config.display.height));
    if machine.headless && machine.state.is_alive() {
        ui.fact("Window", "None: it was started without one");
    }
    if machine.without_saving {
        ui.fact("Saving", "None: what happens now is gone when the machine ends");
    }
    ui.fact("Folder", &machine.folder.display().to_string());
}

fn disks(ui: &mut Ui, machine: &Machine) {
    let t = ui.tokens();
    ui.section("Disks");
    if machine.disks.is_empty() {
        ui.muted("This machine has no hard disk: what its guest writes is gone when it stops.");
    }
    for disk in &machine.disks {
        ui.with_layout(Layout::left_to_right(egui::Align::TOP), |ui| {
            ui.label(egui::RichText::new(icon::DISK).size(size::ICON_LARGE).color(t.text_muted));
            ui.vertical(|ui| {
                ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
                ui.strong_text(&file_name(&disk.path));
                match &disk.sizes {
                    Ok(DiskSizes { guest, host, shared, .. }) => {
                        let used = host.saturating_add(*shared);
                        let share = used as f32 / (*guest).max(1) as f32;
                        let words = format!("{} used on this host, of {}", human(used), human(*guest));
                        ui.meter(share, &words);
                        ui.fine_print(&words);
                    }
                    Err(problem) => {
                        ui.colored_label(t.error, problem);
                    }
                }
                ui.fine_print(&disk.path.display().to_string());
            });
        });
    }
}

/// A path's last part, as a person says it.
pub fn file_name(path: &std::path::Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
