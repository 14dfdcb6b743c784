//! The views: functions of the model and of what the person is doing, that draw and answer with actions.

mod dialogs;
mod disk_dialogs;
mod empty;
mod form;
mod hardware;
mod jobs;
mod library;
mod log;
mod machine;
mod new_machine;
mod notices;
mod picker;
mod shell;
mod snapshot_dialogs;
mod snapshots;

use std::collections::HashMap;

use egui::{TextureHandle, Ui, WidgetInfo, WidgetType};

use super::action::{Action, Command};
use super::model::Model;
use super::state::ViewState;
use crate::theme::{Tone, UiExt, icon};

pub use machine::file_name;
pub use shell::show;

/// The guests' pictures, by the machines' names.
pub type Pictures = HashMap<String, TextureHandle>;

/// What a view is given.
pub struct View<'a> {
    /// What the workers know.
    pub model: &'a Model,
    /// What the person is doing.
    pub state: &'a mut ViewState,
    /// The guests' pictures.
    pub pictures: &'a Pictures,
    /// The snapshots' pictures, by their ids.
    pub snapshot_pictures: &'a Pictures,
    /// What the person asks for.
    pub actions: Vec<Action>,
}

impl View<'_> {
    fn ask(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// A button for a command, disabled with its reason when it can't be done.
    fn command_button(&mut self, ui: &mut Ui, command: Command, tone: Tone) {
        let reason = command.refusal(self.model, self.state);
        // What can't be used does not stand out.
        let tone = if reason.is_some() && tone == Tone::Good { Tone::Info } else { tone };
        if ui.tool_button(tone, command.icon(), command.label(), reason).clicked() {
            self.ask(Action::Command(command));
        }
    }

    /// A menu's row for a command.
    fn command_item(&mut self, ui: &mut Ui, command: Command) {
        let reason = command.refusal(self.model, self.state);
        let key = command.shortcut().map(|key| ui.ctx().format_shortcut(&key)).unwrap_or_default();
        if ui.menu_item(command.icon(), command.label(), &key, reason).clicked() {
            self.ask(Action::Command(command));
            ui.close();
        }
    }

    /// A menu's row for one of several choices.
    fn command_choice(&mut self, ui: &mut Ui, command: Command, chosen: bool) {
        let sign = if chosen { icon::CHOSEN } else { icon::NOT_CHOSEN };
        let row = ui.menu_item(sign, command.label(), "", None);
        row.widget_info(|| WidgetInfo::selected(WidgetType::RadioButton, true, chosen, command.label()));
        if row.clicked() {
            self.ask(Action::Command(command));
            ui.close();
        }
    }

    /// A command as a line of text.
    fn command_link(&mut self, ui: &mut Ui, command: Command, label: &str) {
        if ui.link(label).clicked() {
            self.ask(Action::Command(command));
        }
    }
}
