//! The library: every machine with its picture, its name and what it is doing.

use egui::{CornerRadius, Frame, Label, Margin, Panel, Response, ScrollArea, Sense, Ui, UiBuilder, vec2};
use egui::{Key, WidgetInfo, WidgetType};

use super::View;
use crate::manager::action::{Action, Command};
use crate::manager::model::Machine;
use crate::theme::{UiExt, focus_ring, icon, size, text_edit};

/// Draws it at the left.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    let t = ui.tokens();
    let room = ui.available_width();
    let widest = size::LIBRARY_MAX.min(room * 0.45);
    let frame = Frame::new().fill(t.panel).inner_margin(Margin::same(12));
    Panel::left("library")
        .default_size(size::LIBRARY.min(widest))
        .size_range(size::LIBRARY_MIN.min(widest)..=widest)
        .resizable(true)
        .frame(frame)
        .show(ui, |ui| {
            ui.add_enabled_ui(!view.state.is_modal(), |ui| contents(ui, view));
        });
}

fn contents(ui: &mut Ui, view: &mut View<'_>) {
    ui.horizontal(|ui| {
        let width = (ui.available_width() - size::GAP) / 2.0;
        ui.spacing_mut().button_padding.x = size::GAP_SMALL;
        for (command, label, name) in
            [(Command::New, "New", "New virtual machine…"), (Command::Open, "Open", "Open a file…")]
        {
            ui.allocate_ui(vec2(width, size::CONTROL), |ui| {
                ui.set_min_width(width);
                if ui.wide_button(command.icon(), label, name).clicked() {
                    view.ask(Action::Command(command));
                }
            });
        }
    });
    let search =
        text_edit(&mut view.state.search).hint_text("Search").prefix(icon::SEARCH).desired_width(f32::INFINITY);
    let search = ui.add(search);
    search.widget_info(|| WidgetInfo::labeled(WidgetType::TextEdit, true, "Search"));
    if view.state.focus_search {
        view.state.focus_search = false;
        search.request_focus();
    }
    if search.lost_focus() && ui.input(|input| input.key_pressed(Key::Escape)) {
        view.state.search.clear();
    }
    ui.add_space(size::GAP_SMALL);
    let wish = view.state.search.trim().to_lowercase();
    let machines = view.model.machines.as_deref().unwrap_or_default();
    let shown: Vec<&Machine> = machines.iter().filter(|m| m.name.to_lowercase().contains(&wish)).collect();
    if shown.is_empty() {
        ui.muted("No virtual machine has this in its name.");
        return;
    }
    // The first that fits is what Enter in the search field opens.
    if search.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter)) {
        view.ask(Action::Select(shown[0].name.clone()));
    }
    ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = 2.0;
        for machine in shown {
            let selected = view.state.selected.as_deref() == Some(machine.name.as_str());
            let response = row(ui, view, machine, selected);
            if response.clicked() || response.gained_focus() && !selected {
                view.ask(Action::Select(machine.name.clone()));
            }
            let enter = response.has_focus() && ui.input(|input| input.key_pressed(Key::Enter));
            if response.double_clicked() || enter {
                view.ask(Action::Activate(machine.name.clone()));
            }
            if response.secondary_clicked() {
                view.ask(Action::Select(machine.name.clone()));
            }
            response.context_menu(|ui| {
                for command in [
                    Command::Start,
                    Command::StartUnsaved,
                    Command::Console,
                    Command::ShutDown,
                    Command::Pause,
                    Command::Suspend,
                    Command::Resume,
                    Command::PowerOff,
                    Command::Rename,
                    Command::Delete,
                ] {
                    view.command_item(ui, command);
                }
            });
        }
    });
}

fn row(ui: &mut Ui, view: &View<'_>, machine: &Machine, selected: bool) -> Response {
    let t = ui.tokens();
    let height = size::ROW_PICTURE.y + 2.0 * size::GAP;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::click());
    let label = format!("{}, {}", machine.name, machine.state.word().to_lowercase());
    response.widget_info(|| WidgetInfo::selected(WidgetType::SelectableLabel, true, selected, &label));
    if !ui.is_rect_visible(rect) {
        return response;
    }
    let fill = match (selected, response.hovered()) {
        (true, _) => Some(t.selection),
        (false, true) => Some(t.surface_hover),
        (false, false) => None,
    };
    if let Some(fill) = fill {
        ui.painter().rect_filled(rect, CornerRadius::same(size::RADIUS), fill);
    }
    let inner = rect.shrink(size::GAP);
    let picture = egui::Rect::from_min_size(inner.min, size::ROW_PICTURE);
    ui.picture(picture, view.pictures.get(&machine.name));
    let mut words = inner;
    words.min.x = picture.right() + 10.0;
    let mut ui_words = ui.new_child(UiBuilder::new().max_rect(words));
    ui_words.spacing_mut().item_spacing.y = size::GAP_SMALL;
    if selected {
        ui_words.strong_text(&machine.name);
    } else {
        ui_words.add(Label::new(&machine.name).truncate());
    }
    ui_words.state_sign(machine.state.shape(), machine.state.color(t), machine.state.word());
    focus_ring(ui, &response, size::RADIUS);
    response.on_hover_text(&machine.name)
}
