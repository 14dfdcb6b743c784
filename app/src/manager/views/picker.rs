//! The file picker that needs nothing of the desktop.

use egui::text::{CCursor, CCursorRange};
use egui::{CornerRadius, EventFilter, Key, Modifiers, ScrollArea, Sense, Ui, WidgetInfo, WidgetType, vec2};

use super::{View, dialogs};
use crate::library::size::human;
use crate::manager::action::Action;
use crate::manager::picker::{Outcome, Picker};
use crate::theme::{Tone, UiExt, icon, size, text_edit};

/// Draws it when it is open.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    // Taken out while it is drawn, so that it can ask for actions.
    let Some(mut picker) = view.state.picker.take() else { return };
    let closed = dialogs::modal(ui, "picker", size::PICKER, |ui| contents(ui, view, &mut picker));
    view.state.picker = Some(picker);
    if closed {
        view.ask(Action::Leave);
    }
}

fn contents(ui: &mut Ui, view: &mut View<'_>, picker: &mut Picker) {
    ui.section(picker.purpose.title());
    let mut outcome = Outcome::Stay;
    // Before the field, which would otherwise take them.
    let id = ui.make_persistent_id("path");
    let typing = ui.memory(|memory| memory.has_focus(id));
    if typing {
        let lock = EventFilter { tab: true, vertical_arrows: true, horizontal_arrows: true, escape: false };
        ui.memory_mut(|memory| memory.set_focus_lock_filter(id, lock));
        let pressed = |key| ui.input_mut(|input| input.consume_key(Modifiers::NONE, key));
        let at_end = !picker.text.ends_with('/') && picker.row.is_none();
        if pressed(Key::ArrowDown) {
            picker.step(1);
        }
        if pressed(Key::ArrowUp) {
            picker.step(-1);
        }
        // Tab completes while there is something to complete, and moves on otherwise.
        if at_end && ui.input(|input| input.key_pressed(Key::Tab) && !input.modifiers.any()) {
            let before = picker.text.clone();
            outcome = picker.complete();
            if picker.text != before {
                ui.input_mut(|input| input.consume_key(Modifiers::NONE, Key::Tab));
            }
        }
    }
    ui.horizontal(|ui| {
        if ui.icon_button(icon::UP, "Folder above").clicked() {
            outcome = picker.up();
        }
        let output = text_edit(&mut picker.text).id(id).desired_width(f32::INFINITY).show(ui);
        let response = output.response.response;
        let value = picker.text.clone();
        response.widget_info(|| {
            let mut info = WidgetInfo::text_edit(true, value.clone(), value.clone(), "");
            info.label = Some("Path".into());
            info
        });
        if picker.focus {
            picker.focus = false;
            response.request_focus();
            let mut state = output.state;
            let end = CCursor::new(picker.text.chars().count());
            state.cursor.set_char_range(Some(CCursorRange::one(end)));
            state.store(ui.ctx(), response.id);
        }
        if response.changed() {
            outcome = picker.typed();
        }
        if response.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter)) {
            outcome = picker.enter();
            picker.focus = true;
        }
    });
    if let Some(opened) = list(ui, picker) {
        outcome = opened;
    }
    ui.horizontal(|ui| {
        let reason = (!picker.would_choose()).then_some("Choose a file in the list, or type its path");
        if ui.tool_button(Tone::Good, icon::OPEN, "Open", reason).clicked() {
            outcome = picker.enter();
        }
        if ui.tool_button(Tone::Info, "", "Cancel", None).clicked() {
            view.ask(Action::Leave);
        }
    });
    match outcome {
        Outcome::Stay => {}
        Outcome::List(folder) => view.ask(Action::List(folder)),
        Outcome::Chosen(path) => view.ask(Action::Picked(picker.purpose.clone(), path)),
    }
}

/// What is in the folder. The answer is what a click leads to.
fn list(ui: &mut Ui, picker: &mut Picker) -> Option<Outcome> {
    let t = ui.tokens();
    let height = size::PICKER_LIST.min(ui.ctx().content_rect().height() - 300.0).max(96.0);
    let mut clicked = None;
    let mut opened = None;
    egui::Frame::new().fill(t.field).corner_radius(size::RADIUS).inner_margin(4).show(ui, |ui| {
        ui.set_min_height(height);
        let shown = match picker.shown() {
            Ok(shown) => shown,
            Err(problem) => {
                ui.colored_label(t.error, problem);
                return;
            }
        };
        if shown.is_empty() {
            ui.muted(if picker.is_waiting() { "Reading the folder…" } else { "Nothing here fits." });
            return;
        }
        let row_height = size::CONTROL;
        let area = ScrollArea::vertical().auto_shrink([false, false]).max_height(height);
        ui.spacing_mut().item_spacing.y = 0.0;
        area.show_rows(ui, row_height, shown.len(), |ui, rows| {
            for i in rows {
                let entry = shown[i];
                let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), row_height), Sense::click());
                let selected = picker.row == Some(i);
                let name = if entry.is_folder() { format!("{}/", entry.name) } else { entry.name.clone() };
                response.widget_info(|| WidgetInfo::selected(WidgetType::SelectableLabel, true, selected, &name));
                let fill = match (selected, response.hovered()) {
                    (true, _) => Some(t.selection),
                    (false, true) => Some(t.surface_hover),
                    (false, false) => None,
                };
                if let Some(fill) = fill {
                    ui.painter().rect_filled(rect, CornerRadius::same(size::RADIUS), fill);
                }
                let mut row = ui.new_child(
                    egui::UiBuilder::new()
                        .max_rect(rect.shrink2(vec2(size::GAP, 0.0)))
                        .layout(egui::Layout::right_to_left(egui::Align::Center)),
                );
                row.fine_print(&entry.size.map(human).unwrap_or_default());
                row.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    let sign = if entry.is_folder() { icon::FOLDER } else { icon::FILE };
                    ui.label(egui::RichText::new(sign).color(t.text_muted));
                    ui.add(egui::Label::new(&entry.name).truncate());
                });
                crate::theme::focus_ring(ui, &response, size::RADIUS);
                if response.clicked() {
                    clicked = Some(i);
                }
                // A folder opens with one click, a file is selected first.
                if response.double_clicked() || response.clicked() && entry.is_folder() {
                    opened = Some(i);
                }
            }
        });
    });
    if clicked.is_some() {
        picker.row = clicked;
    }
    opened.map(|row| picker.open_row(row))
}
