//! The tokens as an egui style.

use std::sync::Arc;

use egui::epaint::Shadow;
use egui::style::{HandleShape, Selection, TextCursorStyle, WidgetVisuals, Widgets};
use egui::{
    Context, CornerRadius, FontData, FontDefinitions, FontFamily, FontId, Margin, Stroke, Style, TextStyle, Theme,
};
use serde::{Deserialize, Serialize};

use super::tokens::{self, Tokens, size};

/// Dark, light, or what the desktop says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Appearance {
    /// What the desktop says.
    #[default]
    Desktop,
    /// Dark.
    Dark,
    /// Light.
    Light,
}

/// Gives a context the fonts and both themes.
pub fn install(ctx: &Context) {
    ctx.set_fonts(fonts());
    ctx.set_style_of(Theme::Dark, style(&tokens::DARK, egui::Visuals::dark()));
    ctx.set_style_of(Theme::Light, style(&tokens::LIGHT, egui::Visuals::light()));
    ctx.options_mut(|options| options.zoom_with_keyboard = false);
}

/// Shows a theme. `desktop` is what the desktop prefers, where it says so.
pub fn set_appearance(ctx: &Context, appearance: Appearance, desktop: Option<Theme>) {
    ctx.set_theme(match (appearance, desktop) {
        (Appearance::Dark, _) | (Appearance::Desktop, Some(Theme::Dark)) => egui::ThemePreference::Dark,
        (Appearance::Light, _) | (Appearance::Desktop, Some(Theme::Light)) => egui::ThemePreference::Light,
        (Appearance::Desktop, None) => egui::ThemePreference::System,
    });
}

/// The family of headings and of what is selected.
/// The typeface of what stands out.
pub fn semibold() -> FontFamily {
    FontFamily::Name("semibold".into())
}

fn fonts() -> FontDefinitions {
    let mut fonts = FontDefinitions::default();
    for (name, bytes) in
        [("inter", orangery_assets::fonts::INTER_REGULAR), ("inter-semibold", orangery_assets::fonts::INTER_SEMIBOLD)]
    {
        fonts.font_data.insert(name.into(), Arc::new(FontData::from_static(bytes)));
    }
    let phosphor = egui_phosphor::Variant::Regular.font_data();
    fonts.font_data.insert("phosphor".into(), Arc::new(phosphor));
    // Behind Inter come the icons, in the private use area that our Inter leaves empty, then egui's own fonts.
    let rest = fonts.families.get(&FontFamily::Proportional).cloned().unwrap_or_default();
    let family = |first: &str| {
        let own = [first.to_string(), "phosphor".to_string()];
        own.into_iter().chain(rest.iter().cloned()).collect::<Vec<_>>()
    };
    fonts.families.insert(FontFamily::Proportional, family("inter"));
    fonts.families.insert(semibold(), family("inter-semibold"));
    fonts
}

fn style(t: &Tokens, base: egui::Visuals) -> Style {
    let text_styles = [
        (TextStyle::Small, FontId::new(size::TEXT_SMALL, FontFamily::Proportional)),
        (TextStyle::Body, FontId::new(size::TEXT, FontFamily::Proportional)),
        (TextStyle::Button, FontId::new(size::TEXT, FontFamily::Proportional)),
        (TextStyle::Monospace, FontId::new(size::TEXT_SMALL, FontFamily::Monospace)),
        (TextStyle::Heading, FontId::new(size::TEXT_TITLE, semibold())),
    ]
    .into();
    let mut style = Style { text_styles, ..Style::default() };
    style.drag_value_text_style = TextStyle::Body;
    style.animation_time = 0.0; // Nothing here moves for its own sake, and each animated frame costs a software renderer.
    style.interaction.selectable_labels = false;
    style.interaction.tooltip_delay = 0.4;
    style.scroll_animation = egui::style::ScrollAnimation::none();

    let spacing = &mut style.spacing;
    spacing.item_spacing = egui::vec2(size::GAP, size::GAP);
    spacing.button_padding = egui::vec2(12.0, 5.0);
    spacing.interact_size = egui::vec2(size::CONTROL, size::CONTROL);
    spacing.window_margin = Margin::same(size::GAP_LARGE as i8);
    spacing.menu_margin = Margin::same(6);
    spacing.slider_width = size::SLIDER;
    spacing.slider_rail_height = 4.0;
    spacing.text_edit_width = size::FIELD;
    spacing.combo_width = 160.0;
    spacing.icon_width = 18.0;
    spacing.icon_width_inner = 10.0;
    spacing.icon_spacing = size::GAP;
    spacing.tooltip_width = 360.0;
    spacing.menu_width = 320.0;

    let radius = CornerRadius::same(size::RADIUS);
    let widget = |fill, border, text| WidgetVisuals {
        bg_fill: fill,
        weak_bg_fill: fill,
        bg_stroke: Stroke::new(size::LINE, border),
        corner_radius: radius,
        fg_stroke: Stroke::new(1.5, text),
        expansion: 0.0,
    };
    let visuals = &mut style.visuals;
    *visuals = base;
    visuals.widgets = Widgets {
        noninteractive: widget(t.surface, t.border, t.text),
        inactive: widget(t.button, t.border_strong, t.text),
        hovered: widget(t.button_hover, t.border_strong, t.text),
        // egui draws what has the keyboard focus as active: this is the focus ring too.
        active: WidgetVisuals {
            bg_stroke: Stroke::new(size::RING, t.accent),
            ..widget(t.button_active, t.accent, t.text)
        },
        open: widget(t.button_active, t.border_strong, t.text),
    };
    visuals.selection = Selection { bg_fill: t.selection, stroke: Stroke::new(size::RING, t.accent_text) };
    visuals.text_cursor = TextCursorStyle {
        stroke: Stroke::new(1.5, t.accent_text),
        // A blinking cursor would repaint an idle window for ever.
        blink: false,
        ..visuals.text_cursor.clone()
    };
    visuals.hyperlink_color = t.accent_text;
    visuals.weak_text_color = Some(t.text_muted);
    visuals.faint_bg_color = t.surface_hover;
    visuals.extreme_bg_color = t.field;
    visuals.text_edit_bg_color = Some(t.field);
    visuals.code_bg_color = t.field;
    visuals.warn_fg_color = t.paused;
    visuals.error_fg_color = t.error;
    visuals.window_fill = t.surface;
    visuals.window_stroke = Stroke::new(size::LINE, t.border_strong);
    visuals.window_corner_radius = CornerRadius::same(size::RADIUS_LARGE);
    visuals.menu_corner_radius = radius;
    visuals.panel_fill = t.window;
    visuals.window_shadow = Shadow { offset: [0, 8], blur: 24, spread: 0, color: t.shadow };
    visuals.popup_shadow = Shadow { offset: [0, 4], blur: 12, spread: 0, color: t.shadow };
    visuals.slider_trailing_fill = true;
    visuals.handle_shape = HandleShape::Circle;
    visuals.disabled_alpha = 0.45;
    visuals.clip_rect_margin = size::RING;
    style
}
