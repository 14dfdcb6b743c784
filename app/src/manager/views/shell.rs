//! The window: menus, pages, and what lies over them.

use egui::{Align, CentralPanel, Frame, Layout, Margin, MenuBar, Panel, ScrollArea, Ui};

use super::{View, dialogs, empty, jobs, library, machine, new_machine, notices, picker};
use crate::manager::action::Command;
use crate::manager::state::Page;
use crate::theme::{Appearance, UiExt, size};

/// Draws the whole window.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    let t = ui.tokens();
    let modal = view.state.is_modal();
    Panel::top("menus").frame(Frame::new().fill(t.panel).inner_margin(Margin::symmetric(8, 2))).show(ui, |ui| {
        ui.add_enabled_ui(!modal, |ui| menus(ui, view));
    });
    jobs::strip(ui, view);
    match (&view.model.machines, view.state.page) {
        (_, Page::New) => new_machine::show(ui, view),
        (None, Page::Library) => {
            central(ui, |ui| {
                page(ui, |ui| {
                    notices::failures(ui, view);
                    if view.model.library_failure.is_none() {
                        ui.muted("Reading the library…");
                    }
                });
            });
        }
        (Some(machines), Page::Library) if machines.is_empty() => empty::show(ui, view),
        (Some(_), Page::Library) => {
            library::show(ui, view);
            machine::show(ui, view);
        }
    }
    notices::toasts(ui, view);
    dialogs::show(ui, view);
    picker::show(ui, view);
    notices::drop_target(ui);
}

/// What is left of the window, without a margin: a page has its own.
pub(super) fn central(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    let frame = Frame::new().fill(ui.tokens().window);
    CentralPanel::default().frame(frame).show(ui, add);
}

/// A column of at most [`size::PAGE`], in the middle.
pub(super) fn column(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    let room = ui.available_width();
    let width = size::PAGE.min(room - 2.0 * size::GAP_PAGE);
    ui.with_layout(Layout::left_to_right(Align::TOP), |ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.add_space((room - width) / 2.0);
        ui.vertical(|ui| {
            ui.set_width(width);
            ui.spacing_mut().item_spacing.x = size::GAP;
            add(ui);
        });
    });
}

/// A page that is one [`column`].
pub(super) fn column_page(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| {
        ui.add_space(size::GAP_PAGE);
        column(ui, |ui| {
            ui.spacing_mut().item_spacing.y = size::GAP_CARDS;
            add(ui);
        });
        ui.add_space(size::GAP_PAGE);
    });
}

/// A page that scrolls, with room around it.
pub(super) fn page(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| {
        Frame::new().inner_margin(Margin::same(size::GAP_PAGE as i8)).show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = size::GAP_CARDS;
            add(ui);
        });
    });
}

fn menus(ui: &mut Ui, view: &mut View<'_>) {
    use Command as C;
    let appearance = view.state.settings.appearance;
    MenuBar::new().ui(ui, |ui| {
        let file = ui.menu_button("File", |ui| {
            view.command_item(ui, C::New);
            view.command_item(ui, C::Open);
            view.command_item(ui, C::Demo);
            ui.separator();
            view.command_item(ui, C::Quit);
        });
        if ui.input_mut(|input| input.consume_key(egui::Modifiers::NONE, egui::Key::F10)) {
            file.response.request_focus();
        }
        ui.menu_button("View", |ui| {
            view.command_item(ui, C::Search);
            ui.separator();
            for (command, this) in [
                (C::LookDesktop, Appearance::Desktop),
                (C::LookDark, Appearance::Dark),
                (C::LookLight, Appearance::Light),
            ] {
                view.command_choice(ui, command, appearance == this);
            }
            ui.separator();
            view.command_item(ui, C::Larger);
            view.command_item(ui, C::Smaller);
            view.command_item(ui, C::NormalSize);
        });
        ui.menu_button("Machine", |ui| {
            view.command_item(ui, C::Start);
            view.command_item(ui, C::StartUnsaved);
            view.command_item(ui, C::Console);
            view.command_item(ui, C::ShutDown);
            view.command_item(ui, C::Pause);
            view.command_item(ui, C::Suspend);
            view.command_item(ui, C::Resume);
            ui.separator();
            view.command_item(ui, C::PowerOff);
            view.command_item(ui, C::Reset);
            ui.separator();
            view.command_item(ui, C::TakeSnapshot);
            view.command_item(ui, C::Fork);
            view.command_item(ui, C::Clone);
            ui.separator();
            view.command_item(ui, C::Settings);
            view.command_item(ui, C::Rename);
            view.command_item(ui, C::Delete);
        });
        ui.menu_button("Tools", |ui| {
            view.command_item(ui, C::DiskImages);
            ui.separator();
            view.command_item(ui, C::Jobs);
            view.command_item(ui, C::CheckHost);
        });
        ui.menu_button("Help", |ui| {
            view.command_item(ui, C::Keys);
            view.command_item(ui, C::About);
        });
    });
}
