//! What the manager says unasked: failures, what the host lacks, passing notices, and where a file can be dropped.

use egui::{Align2, Area, CornerRadius, FontId, Frame, Id, Margin, Order, Stroke, Ui, vec2};

use super::View;
use crate::manager::action::{Action, Command};
use crate::theme::{Tone, UiExt, icon, size, time};

/// What failed, each until it is closed.
pub fn failures(ui: &mut Ui, view: &mut View<'_>) {
    let (mut closed, mut accepted) = (None, None);
    let library = view.model.library_failure.iter().map(|failure| (failure, None));
    let others = view.state.failures.iter().enumerate().map(|(i, failure)| (failure, Some(i)));
    for (failure, index) in library.chain(others) {
        let text = match &failure.next {
            Some(next) => format!("{}\n{next}", failure.cause),
            None => failure.cause.clone(),
        };
        ui.notice(Tone::Error, &failure.what, &text, |ui| {
            ui.horizontal_wrapped(|ui| {
                if let Some(offer) = failure.offer.as_ref().filter(|_| index.is_some())
                    && ui.tool_button(Tone::Error, "", offer.label, None).clicked()
                {
                    accepted = index;
                }
                if index.is_some() && ui.tool_button(Tone::Info, icon::CLOSE, "Dismiss", None).clicked() {
                    closed = index;
                }
                if ui.tool_button(Tone::Info, icon::COPY, "Copy", None).clicked() {
                    ui.ctx().copy_text(format!("{}\n{text}", failure.what));
                }
            });
        });
    }
    if let Some(index) = accepted {
        view.ask(Action::Accept(index));
    }
    if let Some(index) = closed {
        view.ask(Action::Dismiss(index));
    }
}

/// What keeps machines from running on this host, with what mends it.
pub fn checks(ui: &mut Ui, view: &mut View<'_>) {
    let model = view.model;
    for (i, check) in model.checks.iter().enumerate() {
        let tone = if check.fatal { Tone::Error } else { Tone::Warning };
        ui.notice(tone, &check.what, &format!("{}\n{}", check.cause, check.remedy), |ui| {
            if let Some(command) = &check.command {
                ui.command_line(command);
            }
            if i + 1 == model.checks.len() {
                view.command_button(ui, Command::CheckHost, Tone::Info);
            }
        });
    }
}

/// Passing notices, at the foot of the window.
pub fn toasts(ui: &mut Ui, view: &mut View<'_>) {
    let now = ui.input(|input| input.time);
    for toast in &mut view.state.toasts {
        let stay = if toast.undo.is_some() { time::TOAST_UNDO } else { time::TOAST };
        toast.until.get_or_insert(now + stay);
    }
    view.state.toasts.retain(|toast| toast.until.is_none_or(|until| until > now));
    let Some(next) = view.state.toasts.iter().filter_map(|toast| toast.until).min_by(f64::total_cmp) else { return };
    ui.ctx().request_repaint_after_secs((next - now) as f32);
    let t = ui.tokens();
    let width = size::TOAST.min(ui.ctx().content_rect().width() - 2.0 * size::GAP_LARGE);
    let mut asked = Vec::new();
    Area::new(Id::new("toasts"))
        .anchor(Align2::RIGHT_BOTTOM, vec2(-size::GAP_LARGE, -size::GAP_LARGE))
        .order(Order::Foreground)
        .show(ui.ctx(), |ui| {
            ui.set_max_width(width);
            for toast in &view.state.toasts {
                let (sign, color) = match toast.tone {
                    Tone::Good => (icon::GOOD, t.running),
                    Tone::Warning => (icon::WARNING, t.paused),
                    Tone::Error => (icon::ERROR, t.error),
                    Tone::Info => (icon::INFO, t.text_muted),
                };
                Frame::new()
                    .fill(t.surface)
                    .stroke(Stroke::new(size::LINE, t.border_strong))
                    .corner_radius(size::RADIUS_LARGE)
                    .shadow(ui.visuals().popup_shadow)
                    .inner_margin(Margin::symmetric(14, 8))
                    .show(ui, |ui| {
                        ui.set_width(width - 28.0);
                        ui.horizontal(|ui| {
                            ui.label(egui::RichText::new(sign).size(18.0).color(color));
                            let buttons = if toast.undo.is_some() { size::CHOOSE } else { 0.0 } + size::CONTROL;
                            ui.scope(|ui| {
                                ui.set_max_width(ui.available_width() - buttons - size::GAP_LARGE);
                                ui.add(egui::Label::new(&toast.text).wrap());
                            });
                            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                                if ui.icon_button(icon::CLOSE, "Close the notice").clicked() {
                                    asked.push(Action::DismissToast(toast.id));
                                }
                                if let Some(trashed) = &toast.undo
                                    && ui.tool_button(Tone::Info, icon::UNDO, "Undo", None).clicked()
                                {
                                    asked.push(Action::Restore(trashed.clone()));
                                    asked.push(Action::DismissToast(toast.id));
                                }
                            });
                        });
                    });
            }
        });
    view.actions.append(&mut asked);
}

/// The whole window lights up while a file is held over it.
pub fn drop_target(ui: &mut Ui) {
    let held = ui.input(|input| input.raw.hovered_files.clone());
    if held.is_empty() {
        return;
    }
    let t = ui.tokens();
    let painter = ui.ctx().layer_painter(egui::LayerId::new(Order::Foreground, Id::new("drop")));
    let rect = ui.ctx().content_rect();
    painter.rect_filled(rect, CornerRadius::ZERO, t.backdrop);
    let frame = rect.shrink(size::GAP_LARGE);
    let radius = CornerRadius::same(size::RADIUS_LARGE);
    painter.rect(frame, radius, t.surface, Stroke::new(size::RING, t.accent), egui::StrokeKind::Inside);
    let name = held[0].path.as_deref().map(super::machine::file_name).unwrap_or_default();
    let center = frame.center();
    let at = center - vec2(0.0, size::ICON_HERO);
    painter.text(at, Align2::CENTER_CENTER, icon::DROP, FontId::proportional(size::ICON_HERO), t.accent_text);
    let title = FontId::proportional(size::TEXT_TITLE);
    painter.text(center + vec2(0.0, size::GAP), Align2::CENTER_CENTER, "Drop to open", title, t.text);
    let at = center + vec2(0.0, size::ICON_HERO);
    painter.text(at, Align2::CENTER_CENTER, name, FontId::proportional(size::TEXT), t.text_muted);
}
