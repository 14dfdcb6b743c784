//! The timeline in the console: a slider over the machine's past, with the picture of each point.

use std::fmt;

use egui::{ColorImage, Image, RichText, Slider, TextureHandle, TextureOptions, Ui, vec2};
use egui_phosphor::regular as icon;

use super::Saving;
use super::dialogs::{buttons, focus_if};
use super::overlay::Ask;
use crate::library::Timestamp;
use crate::theme::{Tone, UiExt};

/// The room for a picture, points.
const PICTURE: egui::Vec2 = vec2(480.0, 300.0);

/// A point of the machine's past.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its id.
    pub id: String,
    /// When it was taken.
    pub taken: Timestamp,
    /// Its screen, small; absent where that was off.
    pub picture: Option<ColorImage>,
}

/// What the dialog shows.
#[derive(Clone)]
pub struct Timeline {
    /// The oldest first.
    points: Vec<Point>,
    selected: usize,
    /// The picture of the point that is selected, once it was drawn.
    texture: Option<(usize, TextureHandle)>,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").field("points", &self.points.len()).field("selected", &self.selected).finish()
    }
}

impl Timeline {
    /// These points, the oldest first; the newest is selected.
    pub fn new(points: Vec<Point>) -> Timeline {
        let selected = points.len().saturating_sub(1);
        Timeline { points, selected, texture: None }
    }

    /// Draws it.
    pub fn show(&mut self, ui: &mut Ui, fresh: bool, asks: &mut Vec<Ask>) {
        ui.section("Timeline");
        let Some(point) = self.points.get(self.selected).cloned() else { return nothing(ui, fresh, asks) };
        self.picture(ui, &point);
        ui.vertical_centered(|ui| ui.label(RichText::new(point.taken.local()).strong()));
        let times: Vec<String> = self.points.iter().map(|point| point.taken.local()).collect();
        ui.spacing_mut().slider_width = ui.available_width();
        let slider = Slider::new(&mut self.selected, 0..=times.len() - 1).show_value(false);
        let response = ui.add_enabled(times.len() > 1, slider);
        response.widget_info(|| {
            egui::WidgetInfo::labeled(egui::WidgetType::Slider, times.len() > 1, "Point of the timeline")
        });
        let response = if times.len() > 1 { focus_if(fresh, response) } else { response };
        response.on_hover_text("The left and right arrow keys move through the past");
        ui.fine_print("What the machine is now becomes a point of the timeline too: nothing is lost by going back.");
        buttons(ui, |ui| {
            if ui.tool_button(Tone::Good, icon::CLOCK_COUNTER_CLOCKWISE, "Go back", None).clicked() {
                asks.push(Ask::Past(Saving::GoBack(point.id.clone())));
            }
            if ui.tool_button(Tone::Info, icon::COPY_SIMPLE, "Open as a copy", None).clicked() {
                asks.push(Ask::Past(Saving::Copy(point.id.clone())));
            }
            if ui.tool_button(Tone::Info, icon::X, "Close", None).clicked() {
                asks.push(Ask::CloseDialog);
            }
        });
    }

    fn picture(&mut self, ui: &mut Ui, point: &Point) {
        if self.texture.as_ref().is_none_or(|(of, _)| *of != self.selected) {
            let picture = point.picture.clone();
            self.texture = picture
                .map(|picture| (self.selected, ui.ctx().load_texture("timeline", picture, TextureOptions::LINEAR)));
        }
        let room = PICTURE.min(vec2(ui.available_width(), PICTURE.y));
        ui.allocate_ui(room, |ui| {
            ui.set_min_size(room);
            ui.centered_and_justified(|ui| match &self.texture {
                Some((_, texture)) => drop(ui.add(Image::new(texture).fit_to_exact_size(room))),
                None => drop(ui.label(RichText::new("The screen was off").weak())),
            });
        });
    }
}

/// There are no points yet.
fn nothing(ui: &mut Ui, fresh: bool, asks: &mut Vec<Ask>) {
    ui.muted(
        "This machine has no checkpoints yet. With a timeline one is taken every ten minutes while it runs, and you can go \
         back to it, or open it as a machine of its own.",
    );
    buttons(ui, |ui| {
        let keep = ui.tool_button(Tone::Good, icon::CLOCK_COUNTER_CLOCKWISE, "Keep a timeline", None);
        if focus_if(fresh, keep).clicked() {
            asks.push(Ask::Past(Saving::KeepTimeline));
        }
        if ui.tool_button(Tone::Info, icon::X, "Close", None).clicked() {
            asks.push(Ask::CloseDialog);
        }
    });
}
