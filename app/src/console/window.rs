//! One window of the console: the native window, what draws it, and egui in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use egui::{ClippedPrimitive, ViewportId};
use egui_winit::winit::event::WindowEvent;
use vmm_core::backend::display::{Cursor, Mode, Screen};
use winit::dpi::LogicalSize;
use winit::event_loop::{ActiveEventLoop, EventLoopProxy};
use winit::platform::{wayland, x11};
use winit::window::{Fullscreen, Window, WindowAttributes};

use super::app::Wakeup;
use super::overlay::{self, Ask, Model};
use super::pace::{Pace, SOFTWARE_RATE};
use super::serial::Serial;
use super::transform::{Area, Placement};
use super::view::{self, FramebufferView, Scene, ViewError};
use super::{Options, Renderer, look};
use crate::theme;

/// The rate of a monitor that does not tell.
const USUAL_RATE: f64 = 60.0;
/// What the desktop groups Orangery's windows by.
const APP_ID: &str = "orangery";

/// A window.
pub struct ConsoleWindow {
    // Dropped in this order: what draws in the window before the window.
    view: Box<dyn FramebufferView>,
    egui_state: egui_winit::State,
    egui: egui::Context,
    /// The native window.
    pub window: Arc<Window>,
    /// Which renderer draws.
    pub renderer: Renderer,
    /// When to draw.
    pub pace: Pace,
    primitives: Vec<ClippedPrimitive>,
    pixels_per_point: f32,
    /// egui must run before the next drawing.
    overlay_stale: bool,
    /// egui wants to run then.
    overlay_at: Option<Instant>,
    focus_toolbar: bool,
    /// What is left for the guest.
    pub area: Area,
    /// Where the terminal is, while it is shown.
    pub terminal: Option<Area>,
    floats: Vec<Area>,
    /// Nothing of the guest was uploaded yet.
    fresh: bool,
    cursor: Cursor,
    hidden: bool,
}

impl ConsoleWindow {
    /// Opens a window for a guest's screen of `mode`.
    ///
    /// # Errors
    /// There is no window or the renderer does not work here.
    pub fn open(
        event_loop: &ActiveEventLoop,
        renderer: Renderer,
        options: &Options,
        mode: Option<Mode>,
        proxy: EventLoopProxy<Wakeup>,
    ) -> Result<ConsoleWindow, ViewError> {
        let zoom = options.text_scale.map_or(1.0, |percent| percent as f32 / 100.0);
        let (window, view) = view::open(renderer, event_loop, attributes(event_loop, options, mode, zoom))?;
        let egui = egui::Context::default();
        theme::install(&egui);
        let desktop = window.theme().map(|t| match t {
            winit::window::Theme::Dark => egui::Theme::Dark,
            winit::window::Theme::Light => egui::Theme::Light,
        });
        theme::set_appearance(&egui, options.appearance, desktop);
        egui.set_zoom_factor(zoom);
        let mut egui_state = egui_winit::State::new(
            egui.clone(),
            ViewportId::ROOT,
            event_loop,
            Some(window.scale_factor() as f32),
            window.theme(),
            Some(view.max_texture_side() as usize),
        );
        egui_state.init_accesskit(event_loop, &window, proxy);
        let rate = if view.is_software() {
            SOFTWARE_RATE
        } else {
            let told = window.current_monitor().and_then(|m| m.refresh_rate_millihertz());
            told.map_or(USUAL_RATE, |millihertz| f64::from(millihertz) / 1000.0)
        };
        window.set_visible(true);
        let mut this = ConsoleWindow {
            pixels_per_point: egui_winit::pixels_per_point(&egui, &window),
            view,
            egui_state,
            egui,
            window,
            renderer,
            pace: Pace::new(rate),
            primitives: Vec::new(),
            overlay_stale: true,
            overlay_at: None,
            focus_toolbar: false,
            area: Area::default(),
            terminal: None,
            floats: Vec::new(),
            fresh: true,
            cursor: Cursor::default(),
            hidden: false,
        };
        this.pace.want_now();
        Ok(this)
    }

    /// What draws, as the graphics call it.
    pub fn description(&self) -> String {
        self.view.description()
    }

    /// The window has a new size.
    pub fn resized(&mut self, width: u32, height: u32) {
        self.view.resize(width, height);
        self.refresh();
        self.pace.want_now();
    }

    /// Something that the overlay shows has changed.
    pub fn refresh(&mut self) {
        self.overlay_stale = true;
        self.pace.want();
    }

    /// Gives the toolbar the keyboard.
    pub fn focus_toolbar(&mut self) {
        self.focus_toolbar = true;
        self.refresh();
    }

    /// Hands an event to egui.
    pub fn feed(&mut self, event: &WindowEvent) {
        if self.egui_state.on_window_event(&self.window, event).repaint {
            self.refresh();
        }
    }

    /// Hands an event of a screen reader to egui.
    pub fn feed_accesskit(&mut self, event: egui_winit::accesskit_winit::Event) {
        use egui_winit::accesskit_winit::WindowEvent as A11y;
        match event.window_event {
            A11y::InitialTreeRequested => self.egui.enable_accesskit(),
            A11y::ActionRequested(request) => self.egui_state.on_accesskit_action_request(request),
            A11y::AccessibilityDeactivated => self.egui.disable_accesskit(),
        }
        self.refresh();
    }

    /// Whether menus, dialogs or a focused control want the keys.
    pub fn wants_keyboard(&self, model: &Model) -> bool {
        overlay::wants_keyboard(&self.egui, model)
    }

    /// Whether the overlay, not the guest, has the pointer at this point of the window.
    pub fn overlay_has(&self, model: &Model, x: f64, y: f64) -> bool {
        overlay::wants_pointer(&self.egui, model)
            || self.egui_state.is_any_pointer_button_down()
            || self.floats.iter().any(|f| f.contains(x, y))
            || !self.area.contains(x, y)
    }

    /// Takes the focus from the overlay's controls.
    pub fn focus_guest(&mut self) {
        self.egui.memory_mut(|m| {
            if let Some(id) = m.focused() {
                m.surrender_focus(id);
            }
        });
        self.refresh();
    }

    /// The text in the clipboard.
    pub fn clipboard(&mut self) -> Option<String> {
        self.egui_state.clipboard_text().filter(|text| !text.is_empty())
    }

    /// Puts a text in the clipboard.
    pub fn set_clipboard(&mut self, text: String) {
        self.egui_state.set_clipboard_text(text);
    }

    /// Whether the pointer is on the terminal, not on what lies over it.
    pub fn terminal_has(&self, model: &Model, x: f64, y: f64) -> bool {
        let over = overlay::wants_pointer(&self.egui, model) || self.floats.iter().any(|f| f.contains(x, y));
        !over && self.terminal.is_some_and(|area| area.contains(x, y))
    }

    /// Shows or hides the host's pointer.
    pub fn hide_pointer(&mut self, hide: bool) {
        if hide != self.hidden {
            self.hidden = hide;
            self.window.set_cursor_visible(!hide);
        }
    }

    /// Whether the guest has a pointer's picture of its own on the screen.
    pub fn has_guest_cursor(&self) -> bool {
        self.cursor.visible && self.cursor.image.is_some()
    }

    /// Where the picture is now.
    pub fn placement(&self, model: &Model, pan: (f64, f64)) -> Option<Placement> {
        Placement::new(model.view, self.area, model.mode?, pan)
    }

    /// When egui wants to run, if nothing happens before.
    pub fn overlay_due(&mut self, now: Instant) -> Option<Instant> {
        if self.overlay_at.is_some_and(|at| at <= now) {
            self.overlay_at = None;
            self.refresh();
        }
        self.overlay_at
    }

    /// Takes over what is new on the guest's screen. The guest waits meanwhile.
    ///
    /// # Errors
    /// See [`FramebufferView::upload`].
    pub fn take_picture(&mut self, screen: &Screen, model: &mut Model) -> Result<(), ViewError> {
        let fresh = std::mem::take(&mut self.fresh);
        let mode = model.mode;
        let (view, cursor) = (&mut self.view, &mut self.cursor);
        let result = screen.take(|update| {
            model.mode = update.mode;
            let picture = match update.mode {
                Some(mode) if fresh || update.mode_changed || !update.damage.is_empty() => {
                    view.upload(mode, update.pixels, update.damage)
                }
                _ => Ok(()),
            };
            if (fresh || update.cursor_changed) && *cursor != *update.cursor {
                let new_image = cursor.image != update.cursor.image;
                cursor.clone_from(update.cursor);
                if let (true, Some(image)) = (new_image, &cursor.image) {
                    return picture.and(view.upload_cursor(image));
                }
            }
            picture
        });
        if model.mode != mode {
            self.overlay_stale = true;
        }
        result
    }

    /// Runs egui if it has reason to, then draws the window. Returns what the person asked for.
    ///
    /// # Errors
    /// The graphics failed.
    pub fn draw(
        &mut self,
        model: &mut Model,
        serial: Option<&Serial>,
        pan: (f64, f64),
        event_loop: &ActiveEventLoop,
    ) -> Result<Vec<Ask>, ViewError> {
        let now = Instant::now();
        self.pace.drawn(now);
        let stale = std::mem::take(&mut self.overlay_stale);
        let asks = if stale { self.run_overlay(model, serial, now, event_loop) } else { Vec::new() };
        let picture = self.placement(model, pan);
        let cursor = picture.filter(|_| self.has_guest_cursor()).and_then(|p| {
            let (cursor, image) = (&self.cursor, self.cursor.image.as_ref()?);
            let x = cursor.x.saturating_sub_unsigned(cursor.hot_x);
            let y = cursor.y.saturating_sub_unsigned(cursor.hot_y);
            Some(p.to_window(x, y, image.width, image.height))
        });
        let [red, green, blue, _] = theme::tokens(&self.egui.global_style().visuals).screen.to_array();
        let scene = Scene {
            backdrop: [red, green, blue],
            picture,
            cursor,
            overlay: &self.primitives,
            pixels_per_point: self.pixels_per_point,
        };
        self.view.draw(&self.window, &scene)?;
        Ok(asks)
    }

    fn run_overlay(
        &mut self,
        model: &mut Model,
        serial: Option<&Serial>,
        now: Instant,
        event_loop: &ActiveEventLoop,
    ) -> Vec<Ask> {
        self.overlay_at = None;
        let input = self.egui_state.take_egui_input(&self.window);
        let focus = std::mem::take(&mut self.focus_toolbar);
        let mut pass = overlay::Pass::default();
        let output = self.egui.run_ui(input, |ui| {
            // egui may run twice to settle the layout; what was asked in the first run counts too.
            let mut asks = std::mem::take(&mut pass.asks);
            let mut terminal = serial.map(Serial::terminal);
            pass = overlay::show(ui, model, terminal.as_deref_mut(), focus, now);
            asks.append(&mut pass.asks);
            pass.asks = asks;
        });
        self.egui_state.handle_platform_output_with_event_loop(&self.window, event_loop, output.platform_output);
        let delay = output.viewport_output.get(&ViewportId::ROOT).map_or(Duration::MAX, |v| v.repaint_delay);
        if delay.is_zero() {
            self.refresh();
        } else {
            self.overlay_at = now.checked_add(delay);
        }
        self.pixels_per_point = output.pixels_per_point;
        self.view.update_overlay(output.textures_delta);
        self.primitives = self.egui.tessellate(output.shapes, output.pixels_per_point);
        let scale = f64::from(self.pixels_per_point);
        self.area = pass.area.map_or_else(Area::default, |rect| physical(rect, scale));
        self.terminal = pass.terminal.map(|rect| physical(rect, scale));
        self.floats = pass.floats.iter().map(|&rect| physical(rect, scale)).collect();
        pass.asks
    }

    /// The bars' height, physical pixels: what a window needs beside the guest's picture.
    fn bars(&self) -> f64 {
        f64::from((look::TOOLBAR + look::STATUS) * self.pixels_per_point)
    }

    /// Makes the window as large as a guest's screen of `mode`, as far as the monitor goes.
    pub fn fit(&self, mode: Mode) {
        let monitor = self.window.current_monitor().map(|m| m.size());
        let (width, height) =
            first_size(mode, self.window.scale_factor(), self.bars(), monitor.map(|s| (s.width, s.height)));
        let _ = self.window.request_inner_size(winit::dpi::PhysicalSize::new(width, height));
    }
}

fn physical(rect: egui::Rect, scale: f64) -> Area {
    let edge = |value: f32| (f64::from(value) * scale).round();
    let (x, y) = (edge(rect.left()), edge(rect.top()));
    Area { x, y, width: (edge(rect.right()) - x).max(0.0), height: (edge(rect.bottom()) - y).max(0.0) }
}

fn attributes(event_loop: &ActiveEventLoop, options: &Options, mode: Option<Mode>, zoom: f32) -> WindowAttributes {
    let monitor = event_loop.primary_monitor().or_else(|| event_loop.available_monitors().next());
    let scale = monitor.as_ref().map_or(1.0, |m| m.scale_factor());
    let bars = f64::from((look::TOOLBAR + look::STATUS) * zoom) * scale;
    let mode = mode.unwrap_or(Mode { width: look::FIRST_MODE.0, height: look::FIRST_MODE.1 });
    let screen = monitor.map(|m| (m.size().width, m.size().height));
    let (width, height) = first_size(mode, scale, bars, screen);
    let (min_width, min_height) = look::WINDOW_MIN;
    let attributes = WindowAttributes::default()
        .with_title(format!("{} — Orangery", options.title))
        .with_inner_size(LogicalSize::new(width / scale, height / scale))
        .with_min_inner_size(LogicalSize::new(min_width, min_height))
        .with_fullscreen(options.fullscreen.then_some(Fullscreen::Borderless(None)))
        // Shown once the screen readers' adapter is in place.
        .with_visible(false);
    let attributes = x11::WindowAttributesExtX11::with_name(attributes, APP_ID, "console");
    wayland::WindowAttributesExtWayland::with_name(attributes, APP_ID, "console")
}

/// The size of a fresh window, physical pixels: the guest's screen, as many times enlarged as the desktop enlarges
/// everything (whole times, so that it stays crisp), as far as the monitor goes.
fn first_size(mode: Mode, scale: f64, bars: f64, monitor: Option<(u32, u32)>) -> (f64, f64) {
    let (guest_width, guest_height) = (f64::from(mode.width), f64::from(mode.height));
    let room = monitor.map_or((f64::INFINITY, f64::INFINITY), |(width, height)| {
        (f64::from(width) * look::MONITOR_PART, f64::from(height) * look::MONITOR_PART - bars)
    });
    let mut times = scale.floor().max(1.0);
    while times > 1.0 && (guest_width * times > room.0 || guest_height * times > room.1) {
        times -= 1.0;
    }
    // A guest larger than the monitor is scaled down, in its own shape.
    let shrink = (room.0 / (guest_width * times)).min(room.1 / (guest_height * times)).clamp(0.1, 1.0);
    ((guest_width * times * shrink).round(), (guest_height * times * shrink + bars).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODE: Mode = Mode { width: 1280, height: 800 };

    #[test]
    fn a_fresh_window_has_the_guests_size_where_it_fits() {
        assert_eq!(first_size(MODE, 1.0, 66.0, Some((1920, 1080))), (1280.0, 866.0));
        assert_eq!(first_size(MODE, 1.5, 99.0, None), (1280.0, 899.0));
    }

    #[test]
    fn on_a_dense_monitor_the_guest_is_enlarged_whole_times() {
        assert_eq!(first_size(MODE, 2.0, 132.0, Some((3840, 2160))), (2560.0, 1732.0));
        assert_eq!(first_size(MODE, 2.0, 132.0, Some((2560, 1600))), (1280.0, 932.0));
    }

    #[test]
    fn a_guest_larger_than_the_monitor_keeps_its_shape() {
        let (width, height) = first_size(Mode { width: 3840, height: 2160 }, 1.0, 60.0, Some((1920, 1080)));
        assert!(width <= 1728.0 && height <= 972.0);
        assert!((width / (height - 60.0) - 16.0 / 9.0).abs() < 0.01);
    }
}
