//! What a machine and its monitor wrote down.

use egui::{Label, RichText, ScrollArea, Ui};

use super::{View, notices};
use crate::manager::model::Machine;
use crate::theme::{UiExt, icon, size};

/// Draws the tab.
pub fn show(ui: &mut Ui, view: &mut View<'_>, machine: &Machine) {
    let model = view.model;
    let log = Some(&model.log).filter(|log| log.name == machine.name);
    egui::Frame::new().inner_margin(egui::Margin::same(size::GAP_PAGE as i8)).show(ui, |ui| {
        notices::failures(ui, view);
        let Some(log) = log else {
            ui.muted("Reading the log…");
            return;
        };
        if log.files.values().all(String::is_empty) {
            ui.muted("Nothing has been written down yet. Start the machine, and its log appears here.");
            return;
        }
        ScrollArea::vertical().auto_shrink([false, false]).stick_to_bottom(true).show(ui, |ui| {
            for (name, text) in log.files.iter().filter(|(_, text)| !text.is_empty()) {
                ui.horizontal(|ui| {
                    ui.section(name);
                    if ui.icon_button(icon::COPY, &format!("Copy {name}")).clicked() {
                        ui.ctx().copy_text(text.clone());
                    }
                });
                ui.card(|ui| {
                    ui.add(Label::new(RichText::new(text).monospace()).wrap().selectable(true));
                });
                ui.add_space(size::GAP);
            }
        });
    });
}
