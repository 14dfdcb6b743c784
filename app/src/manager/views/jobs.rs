//! What takes time: a strip at the foot of the window while something goes on, and a list of all since the window was
//! opened.

use egui::{Frame, Label, Layout, Margin, Panel, RichText, ScrollArea, Ui, WidgetInfo, WidgetType, vec2};

use super::{View, dialogs};
use crate::jobs::{Job, State};
use crate::manager::action::Action;
use crate::theme::{Tone, UiExt, icon, size};

/// The most jobs that the strip shows at once; the others are scrolled to.
const SHOWN: usize = 3;

/// Draws what goes on, at the foot of the window; nothing where nothing does.
pub fn strip(ui: &mut Ui, view: &mut View<'_>) {
    let running: Vec<&Job> = view.model.running_jobs().collect();
    if running.is_empty() {
        return;
    }
    let modal = view.state.is_modal();
    let frame = Frame::new().fill(ui.tokens().panel).inner_margin(Margin::symmetric(12, size::GAP_SMALL as i8));
    Panel::bottom("jobs").frame(frame).show(ui, |ui| {
        ui.add_enabled_ui(!modal, |ui| {
            let height = (size::CONTROL + size::GAP_SMALL) * running.len().min(SHOWN) as f32;
            ScrollArea::vertical().max_height(height).auto_shrink([false, true]).show(ui, |ui| {
                ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
                for job in running {
                    let row = vec2(ui.available_width(), size::CONTROL);
                    ui.allocate_ui_with_layout(row, Layout::right_to_left(egui::Align::Center), |ui| {
                        ui.set_min_size(row);
                        controls(ui, view, job, 0.35);
                        ui.with_layout(Layout::left_to_right(egui::Align::Center), |ui| {
                            ui.label(RichText::new(icon::BUSY).size(18.0).color(ui.tokens().accent_text));
                            ui.add(Label::new(&job.about.what).truncate());
                        });
                    });
                }
            });
        });
    });
}

/// How far a job is and what gives it up, from the right to the left. The bar takes this `share` of what is left.
fn controls(ui: &mut Ui, view: &mut View<'_>, job: &Job, share: f32) {
    let cancelling = matches!(job.state, State::Running { cancelling: true, .. });
    let reason = match (job.about.can_cancel, cancelling) {
        (_, true) => Some("It is being given up"),
        (false, _) => Some("It can't be given up"),
        _ => None,
    };
    let cancel = ui.tool_button(Tone::Info, icon::CLOSE, "Cancel", reason);
    let name = format!("Cancel: {}", job.about.what);
    cancel.widget_info(|| WidgetInfo::labeled(WidgetType::Button, reason.is_none(), &name));
    if cancel.clicked() {
        view.ask(Action::Cancel(job.id));
    }
    let words = match cancelling {
        true => "Cancelling…".to_string(),
        false => job.share().map_or("…".to_string(), |share| format!("{:.0} %", share * 100.0)),
    };
    let text = vec2(size::PERCENT, size::CONTROL);
    ui.allocate_ui_with_layout(text, Layout::right_to_left(egui::Align::Center), |ui| {
        ui.set_min_size(text);
        ui.add(Label::new(RichText::new(&words).color(ui.tokens().text_muted)).truncate());
    });
    let bar = (ui.available_width() * share).min(size::PROGRESS);
    ui.allocate_ui(vec2(bar, size::METER), |ui| {
        ui.set_max_width(bar);
        ui.meter(job.share().unwrap_or(0.0), &format!("{}: {words}", job.about.what));
    });
}

/// The list of all, in a dialog.
pub fn list(ui: &mut Ui, view: &mut View<'_>) {
    let t = ui.tokens();
    ui.section("Jobs");
    let model = view.model;
    if model.jobs.is_empty() {
        ui.muted(
            "Nothing has taken time since this window was opened. What does appears here, and at the window's foot.",
        );
    }
    let height = ui.ctx().content_rect().height() - 220.0;
    ScrollArea::vertical().max_height(height.max(120.0)).show(ui, |ui| {
        ui.set_width(ui.available_width());
        ui.spacing_mut().item_spacing.y = size::GAP;
        for job in model.jobs.iter().rev() {
            let (sign, color, words) = match &job.state {
                State::Running { .. } => (icon::BUSY, t.accent_text, String::new()),
                State::Done => (icon::GOOD, t.running, "Done".into()),
                State::Cancelled => (icon::CLOSE, t.text_muted, "Cancelled".into()),
                State::Failed(why) => (icon::ERROR, t.error, format!("Failed: {why}")),
            };
            ui.with_layout(Layout::left_to_right(egui::Align::TOP), |ui| {
                ui.label(RichText::new(sign).size(18.0).color(color));
                ui.vertical(|ui| {
                    ui.spacing_mut().item_spacing.y = 0.0;
                    ui.add(Label::new(&job.about.what).wrap());
                    if job.is_running() {
                        let row = vec2(ui.available_width(), size::CONTROL);
                        ui.allocate_ui_with_layout(row, Layout::right_to_left(egui::Align::Center), |ui| {
                            controls(ui, view, job, 1.0);
                        });
                    } else {
                        ui.fine_print(&words);
                    }
                });
            });
        }
    });
    ui.add_space(size::GAP);
    ui.fine_print("The log of each machine keeps a line of what was done to it.");
    dialogs::close(ui, view);
}

/// Whether to close the window while jobs go on.
pub fn quit(ui: &mut Ui, view: &mut View<'_>) {
    ui.section("Close Orangery now?");
    let model = view.model;
    let count = model.running_jobs().count();
    let text = if count == 1 { "This goes on, and would be given up:" } else { "These go on, and would be given up:" };
    ui.muted(text);
    for job in model.running_jobs() {
        ui.add(Label::new(format!("·  {}", job.about.what)).wrap());
    }
    ui.muted("Nothing is lost by that: what is there stays as it is. Running machines go on in any case.");
    ui.add_space(size::GAP);
    ui.horizontal_wrapped(|ui| {
        let stay = ui.tool_button(Tone::Info, "", "Keep it open", None);
        dialogs::first_focus(ui, &stay);
        if stay.clicked() {
            view.ask(Action::Leave);
        }
        if ui.tool_button(Tone::Error, icon::QUIT, "Give up and close", None).clicked() {
            view.ask(Action::QuitAnyway);
        }
    });
}
