//! The signs of the states: a shape for each, so that no state is told by its colour alone.

use egui::{Color32, Painter, Pos2, Rect, Shape as Paint, Stroke, vec2};

/// A state's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Running.
    Triangle,
    /// Paused.
    Bars,
    /// Suspended.
    Moon,
    /// Stopped.
    Square,
    /// An error.
    Warning,
    /// On the way from one state to another.
    Spinner,
}

impl Shape {
    /// Paints it into `rect`. `now` turns the spinner, seconds.
    pub(super) fn paint(self, painter: &Painter, rect: Rect, color: Color32, now: f64) {
        let c = rect.center();
        let r = rect.width().min(rect.height()) / 2.0;
        let at = |x: f32, y: f32| -> Pos2 { c + vec2(x, y) * r };
        let stroke = Stroke::new((r * 0.28).max(1.0), color);
        match self {
            Shape::Triangle => {
                painter.add(Paint::convex_polygon(
                    vec![at(-0.7, -0.9), at(0.9, 0.0), at(-0.7, 0.9)],
                    color,
                    Stroke::NONE,
                ));
            }
            Shape::Bars => {
                for x in [-0.45, 0.45] {
                    painter.rect_filled(Rect::from_center_size(at(x, 0.0), vec2(0.5, 1.7) * r), 1.0, color);
                }
            }
            Shape::Moon => {
                painter.circle_stroke(c, r * 0.8, stroke);
                painter.rect_filled(Rect::from_center_size(c, vec2(0.7, 0.35) * r), 0.0, color);
            }
            Shape::Square => {
                let square = Rect::from_center_size(c, vec2(1.5, 1.5) * r);
                painter.rect_stroke(square, 1.0, stroke, egui::StrokeKind::Inside);
            }
            Shape::Warning => {
                painter.add(Paint::closed_line(vec![at(0.0, -0.9), at(0.95, 0.8), at(-0.95, 0.8)], stroke));
                painter.line_segment([at(0.0, -0.25), at(0.0, 0.25)], stroke);
                painter.circle_filled(at(0.0, 0.55), r * 0.14, color);
            }
            Shape::Spinner => {
                let step = (now / super::time::SPINNER_STEP).floor();
                let start = (step * 0.7 % std::f64::consts::TAU) as f32;
                let points = (0..=12).map(|i| {
                    let angle = start + i as f32 / 12.0 * 4.4;
                    at(angle.cos() * 0.8, angle.sin() * 0.8)
                });
                painter.add(Paint::line(points.collect(), stroke));
            }
        }
    }
}
