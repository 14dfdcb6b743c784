//! A machine's snapshots: the tree of them, with the present in it, and the one that is looked at.

use egui::{CornerRadius, Key, Label, Layout, Rect, Response, RichText, ScrollArea, Sense, Stroke, Ui, UiBuilder};
use egui::{WidgetInfo, WidgetType, pos2, vec2};

use super::{View, notices, shell};
use crate::library::size::human;
use crate::manager::action::{Action, Command, change_refusal};
use crate::manager::model::{Machine, Snapshot, Snapshots};
use crate::manager::tree::{Point, Row};
use crate::theme::{Shape, Tone, UiExt, focus_ring, icon, size};

/// Draws the tab.
pub fn show(ui: &mut Ui, view: &mut View<'_>, machine: &Machine) {
    let model = view.model;
    let Some(snapshots) = model.snapshots_of(&machine.name) else {
        shell::page(ui, |ui| {
            notices::failures(ui, view);
            ui.muted("Reading the snapshots…");
        });
        return;
    };
    if let Err(failure) = &snapshots.all {
        shell::page(ui, |ui| {
            notices::failures(ui, view);
            let next = failure.next.as_deref().unwrap_or_default();
            ui.notice(Tone::Error, &failure.what, &format!("{}\n{next}", failure.cause), |_| ());
        });
        return;
    }
    if snapshots.points().next().is_none() {
        shell::page(ui, |ui| {
            notices::failures(ui, view);
            empty(ui, view);
        });
        return;
    }
    if ui.available_width() <= size::NARROW {
        shell::page(ui, |ui| {
            notices::failures(ui, view);
            ui.horizontal_wrapped(|ui| verbs(ui, view));
            ui.muted(&sum(snapshots));
            strip(ui, view, snapshots);
            ui.vertical(|ui| tree(ui, view, machine, snapshots, true));
        });
        return;
    }
    egui::Frame::new().inner_margin(egui::Margin::same(size::GAP_PAGE as i8)).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = size::GAP_CARDS;
        notices::failures(ui, view);
        ui.horizontal(|ui| {
            verbs(ui, view);
            ui.muted(&sum(snapshots));
        });
        strip(ui, view, snapshots);
        let (room, height) = (ui.available_width(), ui.available_height());
        let details_width = (room * 0.44).min(size::DETAILS);
        let column = |ui: &mut Ui, id: &str, width: f32, add: &mut dyn FnMut(&mut Ui)| {
            ui.allocate_ui_with_layout(vec2(width, height), Layout::top_down(egui::Align::Min), |ui| {
                ui.set_width(width);
                ScrollArea::vertical().id_salt(id).auto_shrink([false, false]).show(ui, |ui| add(ui));
            });
        };
        ui.with_layout(Layout::left_to_right(egui::Align::TOP), |ui| {
            ui.spacing_mut().item_spacing.x = size::GAP_LARGE;
            let width = room - details_width - size::GAP_LARGE;
            column(ui, "tree", width, &mut |ui| tree(ui, view, machine, snapshots, false));
            column(ui, "details", details_width, &mut |ui| {
                ui.card(|ui| details(ui, view, machine, snapshots));
            });
        });
    });
}

/// What can be done with the machine as it is now.
fn verbs(ui: &mut Ui, view: &mut View<'_>) {
    view.command_button(ui, Command::TakeSnapshot, Tone::Good);
    view.command_button(ui, Command::Fork, Tone::Info);
    view.command_button(ui, Command::Clone, Tone::Info);
    view.command_button(ui, Command::Timeline, Tone::Info);
}

/// The timeline, from the left to the right: a picture of each checkpoint, with the time.
fn strip(ui: &mut Ui, view: &mut View<'_>, snapshots: &Snapshots) {
    if snapshots.timeline.is_empty() {
        if let Some(plan) = snapshots.plan {
            ui.fine_print(&format!("Timeline: a checkpoint every {} minutes while it runs. None yet.", plan.minutes));
        }
        return;
    }
    // The newest is to be seen first.
    ScrollArea::horizontal().id_salt("timeline").stick_to_right(true).auto_shrink([false, true]).show(ui, |ui| {
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = size::GAP_SMALL;
            for one in &snapshots.timeline {
                let selected = view.state.snapshot.as_ref() == Some(&one.id);
                let response = checkpoint(ui, view, one, selected);
                if response.has_focus() {
                    view.state.focused_snapshot = Some(Some(one.id.clone()));
                }
                if response.clicked() {
                    response.request_focus();
                }
                if response.clicked() || response.gained_focus() && !selected {
                    view.ask(Action::LookAt(Some(one.id.clone())));
                }
                let enter = response.has_focus() && ui.input(|input| input.key_pressed(Key::Enter));
                if response.double_clicked() || enter {
                    view.ask(Action::AskRestore(one.id.clone()));
                }
            }
        });
        ui.add_space(size::GAP);
    });
}

/// A checkpoint of the timeline.
fn checkpoint(ui: &mut Ui, view: &View<'_>, one: &Snapshot, selected: bool) -> Response {
    let t = ui.tokens();
    let picture = size::CHECKPOINT;
    let whole = vec2(picture.x + 2.0 * size::GAP_SMALL, picture.y + size::LINE_HEIGHT + 3.0 * size::GAP_SMALL);
    let (rect, response) = ui.allocate_exact_size(whole, Sense::click());
    let label = format!("{}, {}, {}", one.name, state(one).to_lowercase(), human(one.size));
    response.widget_info(|| WidgetInfo::selected(WidgetType::SelectableLabel, true, selected, &label));
    if !ui.is_rect_visible(rect) {
        return response;
    }
    if selected || response.hovered() {
        let fill = if selected { t.selection } else { t.surface_hover };
        ui.painter().rect_filled(rect, CornerRadius::same(size::RADIUS), fill);
    }
    let place = Rect::from_min_size(rect.min + vec2(size::GAP_SMALL, size::GAP_SMALL), picture);
    ui.picture(place, view.snapshot_pictures.get(&one.id));
    let font = egui::FontId::proportional(size::TEXT_SMALL);
    // The day is told where it is looked at.
    let time = one.taken.split(' ').next_back().unwrap_or_default();
    let color = if one.is_present { t.accent_text } else { t.text_muted };
    let at = rect.center_bottom() - vec2(0.0, size::GAP_SMALL);
    ui.painter().text(at, egui::Align2::CENTER_BOTTOM, time, font, color);
    focus_ring(ui, &response, size::RADIUS);
    response.on_hover_text(&one.taken)
}

fn sum(snapshots: &Snapshots) -> String {
    let total: u64 = snapshots.points().map(|one| one.size).sum();
    let count = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    let checkpoints = match snapshots.timeline.len() {
        0 => String::new(),
        number => format!(" and {}", count(number, "checkpoint")),
    };
    format!("{}{checkpoints}, {} on this host", count(snapshots.list().len(), "snapshot"), human(total))
}

fn empty(ui: &mut Ui, view: &mut View<'_>) {
    ui.card(|ui| {
        ui.spacing_mut().item_spacing.y = size::GAP;
        ui.section("No snapshots yet");
        ui.muted(
            "A snapshot keeps the machine as it is at one moment: its disks and, while it runs, its memory and its screen. \
             You can go back to it at any time. The guest is stopped for some milliseconds only.",
        );
        ui.horizontal_wrapped(|ui| verbs(ui, view));
    });
}

/// The rows. `inside`: what is looked at unfolds below its row.
fn tree(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, snapshots: &Snapshots, inside: bool) {
    // The lanes of one row touch those of the next.
    ui.spacing_mut().item_spacing.y = 0.0;
    for row in &snapshots.rows {
        let one = match row.point {
            Point::Snapshot(number) => snapshots.list().get(number),
            Point::Here => None,
        };
        let id = one.map(|one| one.id.clone());
        let selected = view.state.snapshot == id;
        let response = match one {
            Some(one) => snapshot_row(ui, view, row, one, selected),
            None => here_row(ui, view, row, machine, selected),
        };
        if response.has_focus() {
            view.state.focused_snapshot = Some(id.clone());
        }
        let clicked = response.clicked() || response.secondary_clicked();
        if clicked {
            // The keys mean what was clicked, and not the machine.
            response.request_focus();
        }
        if clicked || response.gained_focus() && !selected {
            view.ask(Action::LookAt(id.clone()));
        }
        let enter = response.has_focus() && ui.input(|input| input.key_pressed(Key::Enter));
        if response.double_clicked() || enter {
            view.ask(match &id {
                Some(id) => Action::AskRestore(id.clone()),
                None => Action::Activate(machine.name.clone()),
            });
        }
        if let Some(id) = id {
            let reason = change_refusal(view.model, machine);
            response.context_menu(|ui| {
                for (sign, label, key, action) in [
                    (icon::RESTORE, "Restore…", "Enter", Action::AskRestore(id.clone())),
                    (icon::RENAME, "Edit…", "F2", Action::AskDescribe(id.clone())),
                    (icon::TRASH, "Delete…", "Delete", Action::AskDeleteSnapshot(id.clone())),
                ] {
                    if ui.menu_item(sign, label, key, reason).clicked() {
                        view.ask(action);
                        ui.close();
                    }
                }
            });
        }
        if inside && selected {
            ui.add_space(size::GAP_SMALL);
            let unfolded = ui.scope(|ui| ui.card(|ui| details(ui, view, machine, snapshots))).response;
            ui.add_space(size::GAP);
            if std::mem::take(&mut view.state.reveal_snapshot) {
                ui.scroll_to_rect(response.rect.union(unfolded.rect), None);
            }
        }
    }
}

/// What a row says.
struct Words<'a> {
    title: &'a str,
    /// Below it.
    facts: &'a str,
    /// To a screen reader.
    label: &'a str,
}

fn snapshot_row(ui: &mut Ui, view: &View<'_>, row: &Row, one: &Snapshot, selected: bool) -> Response {
    let facts = format!("{}  ·  {}  ·  {}", one.taken, state(one), human(one.size));
    let label = format!("{}, taken {}, {}, {}", one.name, one.taken, state(one).to_lowercase(), human(one.size));
    let words = Words { title: &one.name, facts: &facts, label: &label };
    show_row(ui, row, &words, view.snapshot_pictures.get(&one.id), selected)
}

fn here_row(ui: &mut Ui, view: &View<'_>, row: &Row, machine: &Machine, selected: bool) -> Response {
    let picture = view.pictures.get(&machine.name).filter(|_| machine.state.has_picture());
    let label = format!("You are here, {}", machine.state.word().to_lowercase());
    let words = Words { title: "You are here", facts: machine.state.word(), label: &label };
    show_row(ui, row, &words, picture, selected)
}

fn state(one: &Snapshot) -> &'static str {
    if one.running { "Running" } else { "Off" }
}

fn show_row(
    ui: &mut Ui,
    row: &Row,
    words: &Words<'_>,
    picture: Option<&egui::TextureHandle>,
    selected: bool,
) -> Response {
    let t = ui.tokens();
    let height = size::ROW_PICTURE.y + 2.0 * size::GAP;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::click());
    response.widget_info(|| WidgetInfo::selected(WidgetType::SelectableLabel, true, selected, words.label));
    if !ui.is_rect_visible(rect) {
        return response;
    }
    let here = row.point == Point::Here;
    // A tree that is deeper than the window is wide has its last lanes in one.
    let lanes = ((rect.width() * 0.4 / size::LANE) as usize).max(1) - 1;
    let x = |lane: usize| rect.left() + (lane.min(lanes) as f32 + 0.5) * size::LANE;
    let (middle, own) = (rect.center().y, x(row.lane));
    let line = Stroke::new(size::RING, t.border_strong);
    let painter = ui.painter();
    for &lane in &row.passing {
        painter.vline(x(lane), rect.y_range(), line);
    }
    match (row.follows, row.branches) {
        (true, true) => painter.hline(x(row.lane.saturating_sub(1))..=own, middle, line),
        (true, false) => painter.vline(own, rect.top()..=middle, line),
        (false, _) => painter.vline(own, middle..=middle, line),
    };
    if row.goes_on {
        painter.vline(own, middle..=rect.bottom(), line);
    }
    let body = Rect::from_min_max(pos2(own + size::LANE / 2.0, rect.top()), rect.max);
    let fill = match (selected, response.hovered()) {
        (true, _) => Some(t.selection),
        (false, true) => Some(t.surface_hover),
        (false, false) => None,
    };
    if let Some(fill) = fill {
        painter.rect_filled(body.shrink2(vec2(0.0, 1.0)), CornerRadius::same(size::RADIUS), fill);
    }
    let (radius, color) = if here { (size::DOT_HERE, t.accent) } else { (size::DOT, t.text_muted) };
    painter.circle(pos2(own, middle), radius, color, Stroke::new(size::RING, t.window));
    let inner = body.shrink(size::GAP);
    let place = Rect::from_min_size(inner.min, size::ROW_PICTURE);
    ui.picture(place, picture);
    let mut text = inner;
    text.min.x = place.right() + size::GAP_CARDS;
    let mut ui_words = ui.new_child(UiBuilder::new().max_rect(text));
    ui_words.spacing_mut().item_spacing.y = size::GAP_SMALL;
    let title = RichText::new(words.title).color(if here { t.accent_text } else { t.text });
    let title = if here || selected { title.family(crate::theme::semibold()) } else { title };
    ui_words.add(Label::new(title).truncate());
    ui_words.add(Label::new(RichText::new(words.facts).small().color(t.text_muted)).truncate());
    if response.has_focus() {
        let ring = Stroke::new(size::RING, t.accent);
        ui.painter().rect_stroke(body, CornerRadius::same(size::RADIUS), ring, egui::StrokeKind::Inside);
    }
    response
}

/// The snapshot that is looked at, or the present.
fn details(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, snapshots: &Snapshots) {
    ui.spacing_mut().item_spacing.y = size::GAP;
    let one = view.state.snapshot.as_deref().and_then(|id| snapshots.get(id));
    match one {
        Some(one) => snapshot_details(ui, view, machine, snapshots, one),
        None => here_details(ui, view, machine, snapshots),
    }
}

fn snapshot_details(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, snapshots: &Snapshots, one: &Snapshot) {
    let t = ui.tokens();
    let label = format!("The screen when “{}” was taken", one.name);
    let texture = view.snapshot_pictures.get(&one.id);
    screen(ui, texture, &label, if one.running { "The screen was off" } else { "It was off" });
    ui.add(Label::new(RichText::new(&one.name).size(size::TEXT_SECTION).family(crate::theme::semibold())).wrap());
    if !one.note.is_empty() {
        ui.add(Label::new(&one.note).wrap().selectable(true));
    }
    let (shape, color) = if one.running { (Shape::Triangle, t.running) } else { (Shape::Square, t.stopped) };
    ui.state_sign(shape, color, if one.running { "Running, with its memory" } else { "Off" });
    ui.fact("Taken", &one.taken);
    ui.fact("On this host", &human(one.size));
    let parent = one.parent.as_deref().and_then(|id| snapshots.get(id));
    ui.fact("After", parent.map_or("Nothing: it is the first", |parent| &parent.name));
    let reason = change_refusal(view.model, machine);
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = size::GAP;
        if ui.tool_button(Tone::Info, icon::RESTORE, "Restore…", reason).clicked() {
            view.ask(Action::AskRestore(one.id.clone()));
        }
        let copy = if one.is_checkpoint { "Open as a copy…" } else { "Clone…" };
        let clone = ui.tool_button(Tone::Info, icon::CLONE, copy, reason);
        clone
            .widget_info(|| WidgetInfo::labeled(WidgetType::Button, reason.is_none(), format!("{copy}: {}", one.name)));
        if clone.clicked() {
            view.ask(Action::AskClone(one.id.clone()));
        }
        let edit = if one.is_checkpoint { "Keep…" } else { "Edit…" };
        if ui.tool_button(Tone::Info, icon::RENAME, edit, reason).clicked() {
            view.ask(Action::AskDescribe(one.id.clone()));
        }
        if ui.tool_button(Tone::Error, icon::TRASH, "Delete…", reason).clicked() {
            view.ask(Action::AskDeleteSnapshot(one.id.clone()));
        }
    });
}

fn here_details(ui: &mut Ui, view: &mut View<'_>, machine: &Machine, snapshots: &Snapshots) {
    let t = ui.tokens();
    let texture = view.pictures.get(&machine.name).filter(|_| machine.state.has_picture());
    screen(ui, texture, &format!("The screen of {}", machine.name), machine.state.word());
    ui.section("You are here");
    ui.state_sign(machine.state.shape(), machine.state.color(t), machine.state.word());
    let on = snapshots.list().iter().find(|one| one.is_present);
    let text = match on {
        Some(one) => format!("What has changed since “{}” is in no snapshot yet.", one.name),
        None => "What the machine is now is in no snapshot yet.".into(),
    };
    ui.muted(&text);
}

/// A screen as wide as there is room; a dark one with a word where there is none.
fn screen(ui: &mut Ui, texture: Option<&egui::TextureHandle>, label: &str, word: &str) {
    let width = ui.available_width();
    // What can be done stands below, and is to be seen without scrolling.
    let height = (ui.ctx().content_rect().height() * 0.16).min(size::PICTURE_HEIGHT);
    let screen = vec2(width, (width * 0.625).min(height));
    let (rect, response) = ui.allocate_exact_size(screen, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(WidgetType::Image, true, label));
    ui.picture(rect, texture);
    if texture.is_none() {
        let at = rect.center_bottom() - vec2(0.0, size::GAP);
        let font = egui::FontId::proportional(size::TEXT_SMALL);
        ui.painter().text(at, egui::Align2::CENTER_BOTTOM, word, font, ui.tokens().on_screen);
    }
    focus_ring(ui, &response, size::RADIUS_PICTURE);
}
