//! The widgets that more than one view uses, as methods of [`egui::Ui`].

use egui::text::LayoutJob;
use egui::{
    Align, Button, Color32, CornerRadius, FontId, Frame, Id, Label, Layout, Margin, Response, RichText, Sense, Stroke,
    TextFormat, Ui, UiBuilder, WidgetInfo, WidgetType, vec2,
};

use super::state::Shape;
use super::style::semibold;
use super::tokens::{Tokens, size};
use super::{icon, time, tokens};

/// What a notice or a button is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Neutral.
    Info,
    /// Something went well; on a button: the one thing most people want here.
    Good,
    /// Take care.
    Warning,
    /// Something failed; on a button: it destroys.
    Error,
}

/// Orangery's widgets.
pub trait UiExt {
    /// The tokens of the theme in use.
    fn tokens(&self) -> &'static Tokens;
    /// A page's title.
    fn title(&mut self, text: &str) -> Response;
    /// A section's title.
    fn section(&mut self, text: &str) -> Response;
    /// Text of more weight than its neighbours.
    fn strong_text(&mut self, text: &str) -> Response;
    /// Text of less weight. Wraps.
    fn muted(&mut self, text: &str) -> Response;
    /// Small print. Wraps.
    fn fine_print(&mut self, text: &str) -> Response;
    /// A button with an icon. `reason` says why it can't be used now; its accessible name is `label`.
    fn tool_button(&mut self, tone: Tone, icon: &str, label: &str, reason: Option<&str>) -> Response;
    /// A button without words. `name` is what it is called, in its tooltip and by a screen reader.
    fn icon_button(&mut self, icon: &str, name: &str) -> Response;
    /// A button that takes all the width it is given.
    fn wide_button(&mut self, icon: &str, label: &str, name: &str) -> Response;
    /// A row of a menu, with its key at the right. `reason` says why it can't be used now.
    fn menu_item(&mut self, icon: &str, label: &str, key: &str, reason: Option<&str>) -> Response;
    /// A guest's picture inside `rect`, in its own proportions; a dark screen when there is none.
    fn picture(&mut self, rect: egui::Rect, texture: Option<&egui::TextureHandle>);
    /// How much of something is used.
    fn meter(&mut self, used: f32, name: &str);
    /// A tab.
    fn tab(&mut self, selected: bool, label: &str) -> Response;
    /// A big card that is one button.
    fn hero_card(&mut self, icon: &str, title: &str, text: &str, size: egui::Vec2) -> Response;
    /// A state's shape and word, in its colour.
    fn state_sign(&mut self, shape: Shape, color: Color32, word: &str) -> Response;
    /// A framed group.
    fn card<R>(&mut self, add: impl FnOnce(&mut Ui) -> R) -> R;
    /// A coloured notice, with what can be done about it below.
    fn notice<R>(&mut self, tone: Tone, title: &str, text: &str, add: impl FnOnce(&mut Ui) -> R) -> R;
    /// A row of a form: a label, a control, and below it what is wrong with it or what helps. The control is given the
    /// label's id, for `labelled_by`.
    fn field_row<R>(&mut self, label: &str, note: Note<'_>, add: impl FnOnce(&mut Ui, Id) -> R) -> R;
    /// A fact: its name and its value, which can be selected.
    fn fact(&mut self, name: &str, value: &str);
    /// A line that folds away what follows it. Says whether it is open.
    fn fold(&mut self, id: &str, label: &str) -> bool;
    /// A command to copy to a terminal.
    fn command_line(&mut self, command: &str);
    /// A guest's screen that shows nothing, with a word on it.
    fn dark_screen(&mut self, size: egui::Vec2, icon: &str, word: &str) -> Response;
}

/// What stands below a control.
#[derive(Debug, Clone, Copy, Default)]
pub struct Note<'a> {
    /// What is wrong with the value.
    pub error: Option<&'a str>,
    /// What helps to choose one.
    pub hint: Option<&'a str>,
}

impl<'a> Note<'a> {
    /// Nothing to say.
    pub const NONE: Note<'static> = Note { error: None, hint: None };

    /// A hint.
    pub fn hint(hint: &'a str) -> Note<'a> {
        Note { error: None, hint: Some(hint) }
    }

    /// The same with what is wrong, if anything is.
    pub fn or_error(self, error: Option<&'a str>) -> Note<'a> {
        Note { error, ..self }
    }
}

/// A one-line text field, as high as a button.
pub fn text_edit(text: &mut dyn egui::TextBuffer) -> egui::TextEdit<'_> {
    egui::TextEdit::singleline(text).margin(Margin::symmetric(size::GAP as i8, 6)).vertical_align(Align::Center)
}

/// An amount: a slider over what makes sense here, and a number that takes anything.
pub struct Amount<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What the slider reaches.
    pub range: std::ops::RangeInclusive<f64>,
    /// One step of the slider.
    pub step: f64,
    /// Each part of the slider doubles the value, rather than adding to it.
    pub logarithmic: bool,
    /// Writes the number.
    pub format: fn(f64) -> String,
    /// Reads it as a person types it.
    pub parse: fn(&str) -> Option<f64>,
    /// What stands at its right, points.
    pub beside: f32,
}

impl Amount<'_> {
    /// Draws it, and says whether `value` was changed. `label` is the id of its label.
    pub fn show(self, ui: &mut Ui, label: Id, value: &mut f64) -> bool {
        let t = ui.tokens();
        let before = *value;
        let enabled = ui.is_enabled();
        let room = ui.available_width() - size::NUMBER - self.beside - 2.0 * size::GAP;
        let slider = egui::Slider::new(value, self.range)
            .logarithmic(self.logarithmic)
            .step_by(self.step)
            .clamping(egui::SliderClamping::Never)
            .show_value(false);
        let slider = ui.scope(|ui| {
            let spacing = ui.spacing_mut();
            spacing.slider_width = room.clamp(60.0, size::SLIDER);
            // The handle's size follows the height.
            spacing.interact_size.y = size::SLIDER_HEIGHT;
            ui.visuals_mut().selection.bg_fill = t.accent;
            ui.visuals_mut().widgets.inactive.bg_fill = t.border;
            ui.add(slider).labelled_by(label)
        });
        let shown = *value;
        slider.inner.widget_info(|| WidgetInfo::slider(enabled, shown, self.name));
        ui.spacing_mut().interact_size.x = size::NUMBER;
        let number = egui::DragValue::new(value)
            .speed(self.step / 8.0)
            .custom_formatter(|value, _| (self.format)(value))
            .custom_parser(self.parse);
        let number = ui.add(number);
        let shown = *value;
        number.widget_info(|| WidgetInfo::slider(enabled, shown, format!("{}, as a number", self.name)));
        *value != before
    }
}

/// Gives a response the name that a screen reader says and a test finds.
fn name(response: &Response, kind: WidgetType, enabled: bool, label: &str) {
    response.widget_info(|| WidgetInfo::labeled(kind, enabled, label));
}

/// The ring around what has the keyboard, for widgets that paint themselves.
pub fn focus_ring(ui: &Ui, response: &Response, radius: u8) {
    if response.has_focus() {
        let stroke = Stroke::new(size::RING, ui.tokens().accent);
        ui.painter().rect_stroke(response.rect, CornerRadius::same(radius), stroke, egui::StrokeKind::Inside);
    }
}

impl UiExt for Ui {
    fn tokens(&self) -> &'static Tokens {
        tokens(self.visuals())
    }

    fn title(&mut self, text: &str) -> Response {
        self.add(Label::new(RichText::new(text).heading()).truncate())
    }

    fn section(&mut self, text: &str) -> Response {
        self.label(RichText::new(text).font(FontId::new(size::TEXT_SECTION, semibold())))
    }

    fn strong_text(&mut self, text: &str) -> Response {
        self.add(Label::new(RichText::new(text).font(FontId::new(size::TEXT, semibold()))).truncate())
    }

    fn muted(&mut self, text: &str) -> Response {
        self.add(Label::new(RichText::new(text).color(self.tokens().text_muted)).wrap())
    }

    fn fine_print(&mut self, text: &str) -> Response {
        self.add(Label::new(RichText::new(text).small().color(self.tokens().text_muted)).wrap())
    }

    fn tool_button(&mut self, tone: Tone, icon: &str, label: &str, reason: Option<&str>) -> Response {
        let t = self.tokens();
        // Not in a scope of its own, which a line that wraps could not move to the next line.
        let before = std::sync::Arc::clone(self.style());
        let widgets = &mut self.visuals_mut().widgets;
        if tone == Tone::Good {
            for (widget, fill) in [
                (&mut widgets.inactive, t.accent),
                (&mut widgets.hovered, t.accent_hover),
                (&mut widgets.active, t.accent_hover),
            ] {
                widget.weak_bg_fill = fill;
                widget.fg_stroke.color = t.on_accent;
                widget.bg_stroke.color = fill;
            }
            widgets.active.bg_stroke.color = t.text;
        }
        if tone == Tone::Error {
            for widget in [&mut widgets.inactive, &mut widgets.hovered, &mut widgets.active] {
                widget.fg_stroke.color = t.error;
            }
        }
        let button = if icon.is_empty() { Button::new(label) } else { Button::new((icon, label)) };
        let response = self.add_enabled(reason.is_none(), button.min_size(vec2(0.0, size::CONTROL)));
        self.set_style(before);
        name(&response, WidgetType::Button, reason.is_none(), label);
        match reason {
            Some(reason) => response.on_disabled_hover_text(reason),
            None => response,
        }
    }

    fn icon_button(&mut self, icon: &str, label: &str) -> Response {
        let before = std::sync::Arc::clone(self.style());
        self.spacing_mut().button_padding = vec2(size::GAP_SMALL, size::GAP_SMALL);
        let button = Button::new(icon).frame_when_inactive(false).min_size(vec2(size::CONTROL, size::CONTROL));
        let response = self.add(button);
        self.set_style(before);
        name(&response, WidgetType::Button, true, label);
        response.on_hover_text(label)
    }

    fn wide_button(&mut self, icon: &str, label: &str, text: &str) -> Response {
        let button = Button::new((icon, label)).min_size(vec2(self.available_width(), size::CONTROL));
        let response = self.add(button);
        name(&response, WidgetType::Button, true, text);
        response.on_hover_text(text)
    }

    fn menu_item(&mut self, icon: &str, label: &str, key: &str, reason: Option<&str>) -> Response {
        let button = Button::new((icon, label)).shortcut_text(key).min_size(vec2(size::MENU, 0.0));
        let response = self.add_enabled(reason.is_none(), button);
        name(&response, WidgetType::Button, reason.is_none(), label);
        match reason {
            Some(reason) => response.on_disabled_hover_text(reason),
            None => response,
        }
    }

    fn picture(&mut self, rect: egui::Rect, texture: Option<&egui::TextureHandle>) {
        let t = self.tokens();
        let corners = CornerRadius::same(size::RADIUS_PICTURE);
        self.painter().rect_filled(rect, corners, t.screen);
        if texture.is_none() {
            let font = FontId::proportional(rect.height() * 0.5);
            self.painter().text(rect.center(), egui::Align2::CENTER_CENTER, icon::MONITOR, font, t.screen_off);
        }
        if let Some(texture) = texture {
            let own = texture.size_vec2();
            let scale = (rect.width() / own.x.max(1.0)).min(rect.height() / own.y.max(1.0));
            let place = egui::Rect::from_center_size(rect.center(), own * scale);
            egui::Image::new(texture).corner_radius(size::RADIUS_PICTURE).paint_at(self, place);
        }
        let line = Stroke::new(size::LINE, t.border);
        self.painter().rect_stroke(rect, corners, line, egui::StrokeKind::Inside);
    }

    fn meter(&mut self, used: f32, label: &str) {
        let t = self.tokens();
        let (rect, response) = self.allocate_exact_size(vec2(self.available_width(), size::METER), Sense::hover());
        response.widget_info(|| WidgetInfo::labeled(WidgetType::ProgressIndicator, true, label));
        let corners = CornerRadius::same(size::METER as u8 / 2);
        self.painter().rect_filled(rect, corners, t.border);
        if used > 0.0 {
            let mut full = rect;
            full.set_width((rect.width() * used.min(1.0)).max(size::METER));
            self.painter().rect_filled(full, corners, t.accent);
        }
    }

    fn tab(&mut self, selected: bool, label: &str) -> Response {
        let t = self.tokens();
        let font = FontId::new(size::TEXT, if selected { semibold() } else { egui::FontFamily::Proportional });
        let color = if selected { t.accent_text } else { t.text_muted };
        let galley = self.painter().layout_no_wrap(label.to_string(), font, color);
        let (rect, response) = self.allocate_exact_size(vec2(galley.size().x, size::TAB), Sense::click());
        response.widget_info(|| WidgetInfo::selected(WidgetType::SelectableLabel, true, selected, label));
        let at = rect.center() - galley.size() / 2.0;
        if response.hovered() && !selected {
            let around = rect.expand2(vec2(size::GAP, -2.0));
            self.painter().rect_filled(around, CornerRadius::same(size::RADIUS), t.surface_hover);
        }
        self.painter().galley(at, galley, color);
        if selected {
            let line = Stroke::new(size::RING, t.accent);
            self.painter().hline(rect.x_range(), rect.bottom() - 1.0, line);
        }
        focus_ring(self, &response, size::RADIUS);
        response
    }

    fn hero_card(&mut self, icon: &str, title: &str, text: &str, card: egui::Vec2) -> Response {
        let t = self.tokens();
        let (rect, response) = self.allocate_exact_size(card, Sense::click());
        name(&response, WidgetType::Button, true, title);
        let hot = response.hovered() || response.has_focus();
        let fill = if hot { t.surface_hover } else { t.surface };
        let border = if hot { t.accent } else { t.border };
        let radius = CornerRadius::same(size::RADIUS_LARGE);
        self.painter().rect(rect, radius, fill, Stroke::new(size::LINE, border), egui::StrokeKind::Inside);
        let inner = rect.shrink(size::GAP_LARGE);
        let wide = card.x > card.y * 1.5;
        let layout = if wide { Layout::left_to_right(Align::Center) } else { Layout::top_down(Align::Center) };
        let mut ui = self.new_child(UiBuilder::new().max_rect(inner).layout(layout));
        let icon = Label::new(RichText::new(icon).size(size::ICON_HERO).color(t.accent_text));
        let words = |ui: &mut Ui| {
            ui.label(RichText::new(title).font(FontId::new(size::TEXT_SECTION, semibold())));
            ui.add(Label::new(RichText::new(text).color(t.text_muted)).wrap());
        };
        if wide {
            ui.add(icon);
            ui.add_space(size::GAP);
            ui.vertical(|ui| {
                ui.add_space(size::GAP);
                words(ui);
            });
        } else {
            ui.add_space(size::GAP);
            ui.add(icon);
            ui.add_space(size::GAP_SMALL);
            words(&mut ui);
        }
        focus_ring(self, &response, size::RADIUS);
        response.on_hover_cursor(egui::CursorIcon::PointingHand)
    }

    fn state_sign(&mut self, shape: Shape, color: Color32, word: &str) -> Response {
        let line = vec2(self.available_width(), size::LINE_HEIGHT);
        self.allocate_ui_with_layout(line, Layout::left_to_right(Align::Center), |ui| {
            ui.spacing_mut().item_spacing.x = 6.0;
            let (rect, _) = ui.allocate_exact_size(vec2(12.0, 12.0), Sense::hover());
            shape.paint(ui.painter(), rect, color, ui.input(|i| i.time));
            if shape == Shape::Spinner {
                ui.ctx().request_repaint_after_secs(time::SPINNER_STEP as f32);
            }
            ui.add(Label::new(RichText::new(word).color(color)).truncate())
        })
        .inner
    }

    fn card<R>(&mut self, add: impl FnOnce(&mut Ui) -> R) -> R {
        let t = self.tokens();
        Frame::new()
            .fill(t.surface)
            .stroke(Stroke::new(size::LINE, t.border))
            .corner_radius(size::RADIUS_LARGE)
            .inner_margin(Margin::same(size::GAP_LARGE as i8))
            .show(self, |ui| {
                ui.set_width(ui.available_width());
                add(ui)
            })
            .inner
    }

    fn notice<R>(&mut self, tone: Tone, title: &str, text: &str, add: impl FnOnce(&mut Ui) -> R) -> R {
        let t = self.tokens();
        let (fill, color, sign) = match tone {
            Tone::Info => (t.surface, t.text_muted, icon::INFO),
            Tone::Good => (t.info_surface, t.running, icon::GOOD),
            Tone::Warning => (t.warning_surface, t.paused, icon::WARNING),
            Tone::Error => (t.error_surface, t.error, icon::ERROR),
        };
        Frame::new()
            .fill(fill)
            .stroke(Stroke::new(size::LINE, color.gamma_multiply(0.5)))
            .corner_radius(size::RADIUS_LARGE)
            .inner_margin(Margin::symmetric(size::GAP_LARGE as i8, 12))
            .show(self, |ui| {
                ui.set_width(ui.available_width());
                ui.with_layout(Layout::left_to_right(Align::TOP), |ui| {
                    ui.label(RichText::new(sign).size(20.0).color(color));
                    ui.vertical(|ui| {
                        ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
                        ui.add(Label::new(RichText::new(title).font(FontId::new(size::TEXT, semibold()))).wrap());
                        if !text.is_empty() {
                            ui.add(Label::new(text).wrap().selectable(true));
                        }
                        add(ui)
                    })
                    .inner
                })
                .inner
            })
            .inner
    }

    fn field_row<R>(&mut self, label: &str, note: Note<'_>, add: impl FnOnce(&mut Ui, Id) -> R) -> R {
        let t = self.tokens();
        let narrow = self.available_width() < size::LABEL + size::SLIDER + size::NUMBER + 2.0 * size::GAP_LARGE;
        let control = |ui: &mut Ui, id: Id| {
            ui.spacing_mut().item_spacing.y = size::GAP_SMALL;
            let inner = ui
                .horizontal_wrapped(|ui| {
                    ui.set_min_height(size::CONTROL);
                    add(ui, id)
                })
                .inner;
            if let Some(error) = note.error {
                let mut job = LayoutJob::default();
                let font = FontId::new(size::TEXT_SMALL, egui::FontFamily::Proportional);
                job.append(icon::ERROR, 0.0, TextFormat::simple(FontId::proportional(size::TEXT_SMALL), t.error));
                job.append(error, size::GAP_SMALL, TextFormat::simple(font, t.error));
                let response = ui.add(Label::new(job).wrap());
                response.widget_info(|| WidgetInfo::labeled(WidgetType::Label, true, error));
            } else if let Some(hint) = note.hint {
                ui.fine_print(hint);
            }
            inner
        };
        let text = Label::new(RichText::new(label).color(t.text_muted));
        if narrow {
            return self
                .vertical(|ui| {
                    let id = ui.add(text).id;
                    control(ui, id)
                })
                .inner;
        }
        self.with_layout(Layout::left_to_right(Align::TOP), |ui| {
            let column = vec2(size::LABEL, size::CONTROL);
            let id = ui.allocate_ui_with_layout(column, Layout::left_to_right(Align::Center), |ui| {
                ui.set_min_size(column);
                ui.add(text.truncate()).id
            });
            ui.vertical(|ui| control(ui, id.inner)).inner
        })
        .inner
    }

    fn fact(&mut self, name: &str, value: &str) {
        let t = self.tokens();
        self.with_layout(Layout::left_to_right(Align::TOP), |ui| {
            let (column, _) = ui.allocate_exact_size(vec2(size::FACT, size::LINE_HEIGHT), Sense::hover());
            let mut left = ui.new_child(UiBuilder::new().max_rect(column));
            let label = left.add(Label::new(RichText::new(name).color(t.text_muted)).truncate()).id;
            ui.add(Label::new(value).wrap().selectable(true)).labelled_by(label);
        });
    }

    fn fold(&mut self, id: &str, label: &str) -> bool {
        let t = self.tokens();
        let id = self.make_persistent_id(id);
        let mut open = self.data(|data| data.get_temp::<bool>(id)).unwrap_or(false);
        let sign = if open { icon::UNFOLDED } else { icon::FOLDED };
        let text = RichText::new(label).font(FontId::new(size::TEXT, semibold()));
        let response =
            self.add(Button::new((RichText::new(sign).color(t.text_muted), text)).frame_when_inactive(false));
        response.widget_info(|| {
            let mut info = WidgetInfo::labeled(WidgetType::CollapsingHeader, true, label);
            info.selected = Some(open);
            info
        });
        if response.clicked() {
            open = !open;
            self.data_mut(|data| data.insert_temp(id, open));
        }
        open
    }

    fn command_line(&mut self, command: &str) {
        let t = self.tokens();
        Frame::new()
            .fill(t.field)
            .stroke(Stroke::new(size::LINE, t.border))
            .corner_radius(size::RADIUS)
            .inner_margin(Margin { left: 10, right: 4, top: 2, bottom: 2 })
            .show(self, |ui| {
                ui.horizontal(|ui| {
                    let room = ui.available_width() - size::CONTROL - size::GAP;
                    ui.scope(|ui| {
                        ui.set_max_width(room);
                        ui.add(Label::new(RichText::new(command).monospace()).wrap().selectable(true));
                    });
                    if ui.icon_button(icon::COPY, "Copy the command").clicked() {
                        ui.ctx().copy_text(command.to_string());
                    }
                });
            });
    }

    fn dark_screen(&mut self, size: egui::Vec2, icon: &str, word: &str) -> Response {
        let t = self.tokens();
        let (rect, response) = self.allocate_exact_size(size, Sense::click());
        self.painter().rect_filled(rect, CornerRadius::same(size::RADIUS_PICTURE), t.screen);
        let font = FontId::proportional(size::ICON_HERO);
        let lift = vec2(0.0, 14.0);
        self.painter().text(rect.center() - lift, egui::Align2::CENTER_CENTER, icon, font, t.on_screen);
        let font = FontId::proportional(size::TEXT);
        self.painter().text(rect.center() + lift * 1.4, egui::Align2::CENTER_CENTER, word, font, t.on_screen);
        name(&response, WidgetType::Image, true, word);
        focus_ring(self, &response, size::RADIUS_PICTURE);
        response
    }
}
