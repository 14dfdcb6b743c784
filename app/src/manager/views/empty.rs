//! The first page: nothing here yet, and the three ways on.

use egui::{Align, Layout, Ui, vec2};

use super::{View, notices, shell};
use crate::manager::action::{Action, Command, Purpose};
use crate::theme::{UiExt, icon, size};

/// Draws it.
pub fn show(ui: &mut Ui, view: &mut View<'_>) {
    shell::central(ui, |ui| {
        shell::page(ui, |ui| {
            notices::failures(ui, view);
            notices::checks(ui, view);
            let width = ui.available_width();
            let in_a_row = width >= 3.0 * size::CARD.x + 2.0 * size::GAP_LARGE;
            let space = ui.available_height() - size::CARD.y - 160.0;
            ui.add_space((space / 2.0).clamp(size::GAP, 120.0));
            ui.vertical_centered(|ui| {
                ui.title("What would you like to run?");
                ui.muted("Nothing needs to be filled in: start with what you have.");
            });
            ui.add_space(size::GAP_LARGE);
            let cards = [
                (
                    icon::DESKTOP_GUEST,
                    "Run a Linux desktop",
                    "Open the ISO of a distribution that you have downloaded, and start it.",
                    Action::Pick(Purpose::Medium(0)),
                ),
                (
                    icon::SANDBOX,
                    "New sandbox",
                    "Try the demo guest: a small machine that is gone when you close it. No download.",
                    Action::Command(Command::Demo),
                ),
                (
                    icon::OPEN,
                    "Open a file",
                    "An ISO, a disk image or a kernel becomes a virtual machine.",
                    Action::Pick(Purpose::Open),
                ),
            ];
            let card = if in_a_row { size::CARD } else { vec2(width.min(size::PAGE), size::CARD_WIDE) };
            let draw = |ui: &mut Ui| {
                ui.spacing_mut().item_spacing = vec2(size::GAP_LARGE, size::GAP_LARGE);
                for (icon, title, text, action) in cards {
                    if ui.hero_card(icon, title, text, card).clicked() {
                        view.ask(action);
                    }
                }
            };
            if in_a_row {
                let row = 3.0 * card.x + 2.0 * size::GAP_LARGE;
                ui.horizontal(|ui| {
                    ui.add_space((width - row) / 2.0);
                    draw(ui);
                });
            } else {
                ui.with_layout(Layout::top_down(Align::Center), draw);
            }
            ui.add_space(size::GAP_LARGE);
            ui.vertical_centered(|ui| {
                ui.muted("Or drop a file anywhere on this window.");
                ui.add_space(size::GAP_SMALL);
                view.command_link(ui, Command::New, "Set up a virtual machine by hand");
            });
        });
    });
}
