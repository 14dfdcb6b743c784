//! The renderer for every other host: OpenGL 2.1 or OpenGL ES 2.0 and better, through glutin and egui_glow.

use std::ffi::CString;
use std::num::NonZeroU32;
use std::sync::Arc;

use egui::TexturesDelta;
use egui_glow::{Painter, ShaderVersion};
use glutin::config::{Config, ConfigTemplateBuilder};
use glutin::context::{ContextApi, ContextAttributesBuilder, PossiblyCurrentContext};
use glutin::display::{Display, DisplayApiPreference, GetGlDisplay};
use glutin::prelude::*;
use glutin::surface::{Surface, SurfaceAttributesBuilder, SwapInterval, WindowSurface};
use raw_window_handle::{HasDisplayHandle, HasWindowHandle};
use vmm_core::backend::display::{CursorImage, Mode, Rect};
use winit::event_loop::ActiveEventLoop;
use winit::window::{Window, WindowAttributes};

use super::{FramebufferView, Scene, ViewError, WindowRect, clip_space, is_nearest, rows_of, uploads};
use egui_glow::glow::{self, HasContext, PixelUnpackData};

/// See [`super::open`].
pub fn open(
    event_loop: &ActiveEventLoop,
    attributes: WindowAttributes,
) -> Result<(Arc<Window>, Box<dyn FramebufferView>), ViewError> {
    let config = choose_config(event_loop)?;
    let window = glutin_winit::finalize_window(event_loop, attributes, &config)
        .map_err(|e| ViewError::host("could not open a window", e))?;
    let window = Arc::new(window);
    let view = GlowView::new(&window, &config)?;
    Ok((window, Box::new(view)))
}

fn choose_config(event_loop: &ActiveEventLoop) -> Result<Config, ViewError> {
    let failed = |e: &dyn std::fmt::Display| ViewError::host("could not start OpenGL", e);
    let handle = event_loop.display_handle().map_err(|e| failed(&e))?.as_raw();
    let hook = Box::new(winit::platform::x11::register_xlib_error_hook as fn(_));
    // SAFETY: the display handle is valid while the event loop is, which outlives every window.
    let display = unsafe { Display::new(handle, DisplayApiPreference::GlxThenEgl(hook)) }.map_err(|e| failed(&e))?;
    let template = ConfigTemplateBuilder::new().with_depth_size(0).with_stencil_size(0).build();
    // SAFETY: no native window is in the template that could be gone.
    let configs = unsafe { display.find_configs(template) }.map_err(|e| failed(&e))?;
    // Without transparency and with the fewest samples: every other bit costs memory traffic.
    configs
        .min_by_key(|c| (c.num_samples(), c.supports_transparency() == Some(true), c.alpha_size()))
        .ok_or_else(|| failed(&"no configuration fits"))
}

struct GlowView {
    // Dropped in this order: what needs the context before the context.
    painter: Painter,
    program: Program,
    picture: Option<Texture>,
    cursor: Option<Texture>,
    gl: Arc<glow::Context>,
    surface: Surface<WindowSurface>,
    context: PossiblyCurrentContext,
    size: (u32, u32),
    to_free: Vec<egui::TextureId>,
    max_side: u32,
    /// Rows may be taken out of a wider picture (not in OpenGL ES 2).
    has_row_length: bool,
    renderer: String,
}

struct Texture {
    name: glow::Texture,
    mode: Mode,
    nearest: Option<bool>,
}

struct Program {
    name: glow::Program,
    corners: glow::Buffer,
    /// Core profiles draw nothing without one; old versions have none.
    array: Option<glow::VertexArray>,
    position: u32,
    place: Option<glow::UniformLocation>,
    opaque: Option<glow::UniformLocation>,
    image: Option<glow::UniformLocation>,
}

impl GlowView {
    fn new(window: &Window, config: &Config) -> Result<GlowView, ViewError> {
        let failed = |why: String| ViewError::host("could not start OpenGL", why);
        let handle = window.window_handle().map_err(|e| failed(e.to_string()))?.as_raw();
        let display = config.display();
        let desktop = ContextAttributesBuilder::new().build(Some(handle));
        let embedded = ContextAttributesBuilder::new().with_context_api(ContextApi::Gles(None)).build(Some(handle));
        // SAFETY: the window handle is valid: `window` is alive, and the view is dropped before it.
        let context = unsafe { display.create_context(config, &desktop) }
            // SAFETY: as above.
            .or_else(|_| unsafe { display.create_context(config, &embedded) })
            .map_err(|e| failed(e.to_string()))?;
        let size = window.inner_size();
        let (width, height) = (non_zero(size.width), non_zero(size.height));
        let attributes = SurfaceAttributesBuilder::<WindowSurface>::new().build(handle, width, height);
        // SAFETY: as above.
        let surface =
            unsafe { display.create_window_surface(config, &attributes) }.map_err(|e| failed(e.to_string()))?;
        let context = context.make_current(&surface).map_err(|e| failed(e.to_string()))?;
        // The window paces itself; a driver that insists on waiting only makes it slower.
        let _ = surface.set_swap_interval(&context, SwapInterval::DontWait);
        let load = |name: &str| match CString::new(name) {
            Ok(name) => display.get_proc_address(&name),
            Err(_) => std::ptr::null(),
        };
        // SAFETY: the context is current, and `load` returns functions of it.
        let gl = Arc::new(unsafe { glow::Context::from_loader_function(load) });
        let version = ShaderVersion::get(&gl);
        let painter = Painter::new(gl.clone(), "", None, false).map_err(|e| failed(e.to_string()))?;
        let program = Program::new(&gl, version).map_err(failed)?;
        // SAFETY: the context is current.
        let (max_side, renderer) =
            unsafe { (gl.get_parameter_i32(glow::MAX_TEXTURE_SIZE), gl.get_parameter_string(glow::RENDERER)) };
        Ok(GlowView {
            painter,
            program,
            picture: None,
            cursor: None,
            gl,
            surface,
            context,
            size: (width.get(), height.get()),
            to_free: Vec::new(),
            max_side: u32::try_from(max_side).unwrap_or(1024),
            has_row_length: version != ShaderVersion::Es100,
            renderer,
        })
    }

    fn texture(&self, mode: Mode) -> Result<Texture, ViewError> {
        let max = self.max_side;
        if mode.width > max || mode.height > max {
            return Err(ViewError::TooLarge { width: mode.width, height: mode.height, max });
        }
        let gl = &self.gl;
        // SAFETY: the context is current on this thread as long as the view lives; no data is read.
        unsafe {
            let name = gl.create_texture().map_err(|e| ViewError::host("could not make a texture", e))?;
            gl.bind_texture(glow::TEXTURE_2D, Some(name));
            for axis in [glow::TEXTURE_WRAP_S, glow::TEXTURE_WRAP_T] {
                gl.tex_parameter_i32(glow::TEXTURE_2D, axis, glow::CLAMP_TO_EDGE.cast_signed());
            }
            gl.tex_image_2d(
                glow::TEXTURE_2D,
                0,
                glow::RGBA.cast_signed(),
                mode.width.cast_signed(),
                mode.height.cast_signed(),
                0,
                glow::RGBA,
                glow::UNSIGNED_BYTE,
                PixelUnpackData::Slice(None),
            );
            Ok(Texture { name, mode, nearest: None })
        }
    }

    fn write(&self, texture: &Texture, pixels: &[u8], rect: Rect) {
        let mode = texture.mode;
        let rect = if self.has_row_length { rect } else { Rect { x: 0, width: mode.width, ..rect } };
        let Some(rows) = rows_of(rect, mode, pixels) else { return };
        let gl = &self.gl;
        // SAFETY: the context is current; `rows` holds every byte the rectangle reads: `height - 1` rows of the
        // picture's width (UNPACK_ROW_LENGTH) and the last one's part.
        unsafe {
            gl.bind_texture(glow::TEXTURE_2D, Some(texture.name));
            gl.pixel_store_i32(glow::UNPACK_ALIGNMENT, 4);
            if self.has_row_length {
                gl.pixel_store_i32(glow::UNPACK_ROW_LENGTH, mode.width.cast_signed());
            }
            // The bytes are B, G, R, X; the shader puts them in order, which every version of OpenGL can.
            gl.tex_sub_image_2d(
                glow::TEXTURE_2D,
                0,
                rect.x.cast_signed(),
                rect.y.cast_signed(),
                rect.width.cast_signed(),
                rect.height.cast_signed(),
                glow::RGBA,
                glow::UNSIGNED_BYTE,
                PixelUnpackData::Slice(Some(rows)),
            );
            if self.has_row_length {
                gl.pixel_store_i32(glow::UNPACK_ROW_LENGTH, 0);
            }
        }
    }

    fn free(&self, texture: Option<Texture>) {
        if let Some(texture) = texture {
            // SAFETY: the context is current and the name is ours.
            unsafe { self.gl.delete_texture(texture.name) };
        }
    }
}

impl FramebufferView for GlowView {
    fn resize(&mut self, width: u32, height: u32) {
        let (width, height) = (non_zero(width), non_zero(height));
        self.surface.resize(&self.context, width, height);
        self.size = (width.get(), height.get());
    }

    fn upload(&mut self, mode: Mode, pixels: &[u8], damage: &[Rect]) -> Result<(), ViewError> {
        let is_new = self.picture.as_ref().map(|t| t.mode) != Some(mode);
        if is_new {
            let old = self.picture.take();
            self.free(old);
            self.picture = Some(self.texture(mode)?);
        }
        if let Some(texture) = &self.picture {
            for rect in uploads(mode, is_new, damage) {
                self.write(texture, pixels, rect);
            }
        }
        Ok(())
    }

    fn upload_cursor(&mut self, image: &CursorImage) -> Result<(), ViewError> {
        let mode = Mode { width: image.width, height: image.height };
        let old = self.cursor.take();
        self.free(old);
        let texture = self.texture(mode)?;
        self.write(&texture, &image.pixels, Rect::full(mode));
        self.cursor = Some(texture);
        Ok(())
    }

    fn update_overlay(&mut self, textures: TexturesDelta) {
        for (id, delta) in &textures.set {
            self.painter.set_texture(*id, delta);
        }
        self.to_free.extend(textures.free);
    }

    fn draw(&mut self, window: &Window, scene: &Scene<'_>) -> Result<(), ViewError> {
        let [red, green, blue] = scene.backdrop.map(|c| f32::from(c) / 255.0);
        self.painter.clear([self.size.0, self.size.1], [red, green, blue, 1.0]);
        let nearest = scene.picture.as_ref().is_some_and(is_nearest);
        if let (Some(placement), Some(texture)) = (&scene.picture, &mut self.picture) {
            let rect = (placement.x, placement.y, placement.width, placement.height);
            self.program.draw(&self.gl, texture, rect, self.size, nearest, true);
        }
        if let (Some(rect), Some(texture)) = (scene.cursor, &mut self.cursor) {
            self.program.draw(&self.gl, texture, rect, self.size, nearest, false);
        }
        self.painter.paint_primitives([self.size.0, self.size.1], scene.pixels_per_point, scene.overlay);
        for id in self.to_free.drain(..) {
            self.painter.free_texture(id);
        }
        window.pre_present_notify();
        self.surface.swap_buffers(&self.context).map_err(|e| ViewError::host("could not draw with OpenGL", e))
    }

    fn is_software(&self) -> bool {
        let name = self.renderer.to_ascii_lowercase();
        ["llvmpipe", "softpipe", "swrast", "software"].iter().any(|s| name.contains(s))
    }

    fn max_texture_side(&self) -> u32 {
        self.max_side
    }

    fn description(&self) -> String {
        format!("glow, OpenGL, {}", self.renderer)
    }
}

impl Drop for GlowView {
    fn drop(&mut self) {
        let (picture, cursor) = (self.picture.take(), self.cursor.take());
        self.free(picture);
        self.free(cursor);
        self.program.destroy(&self.gl);
        self.painter.destroy();
    }
}

impl Program {
    fn new(gl: &glow::Context, version: ShaderVersion) -> Result<Program, String> {
        let (vertex, fragment) = sources(version);
        // SAFETY: the context is current; every name used was made here.
        unsafe {
            let name = gl.create_program()?;
            for (kind, source) in [(glow::VERTEX_SHADER, vertex), (glow::FRAGMENT_SHADER, fragment)] {
                let shader = gl.create_shader(kind)?;
                gl.shader_source(shader, &source);
                gl.compile_shader(shader);
                if !gl.get_shader_compile_status(shader) {
                    return Err(gl.get_shader_info_log(shader));
                }
                gl.attach_shader(name, shader);
                gl.delete_shader(shader);
            }
            gl.link_program(name);
            if !gl.get_program_link_status(name) {
                return Err(gl.get_program_info_log(name));
            }
            let corners = gl.create_buffer()?;
            gl.bind_buffer(glow::ARRAY_BUFFER, Some(corners));
            let unit: [f32; 8] = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
            let bytes: Vec<u8> = unit.iter().flat_map(|v| v.to_ne_bytes()).collect();
            gl.buffer_data_u8_slice(glow::ARRAY_BUFFER, &bytes, glow::STATIC_DRAW);
            let new = version.is_new_shader_interface();
            Ok(Program {
                array: if new { gl.create_vertex_array().ok() } else { None },
                position: gl.get_attrib_location(name, "unit").ok_or("no vertex attribute")?,
                place: gl.get_uniform_location(name, "place"),
                opaque: gl.get_uniform_location(name, "opaque"),
                image: gl.get_uniform_location(name, "image"),
                name,
                corners,
            })
        }
    }

    fn draw(
        &self,
        gl: &glow::Context,
        texture: &mut Texture,
        rect: WindowRect,
        window: (u32, u32),
        nearest: bool,
        opaque: bool,
    ) {
        let [x, y, width, height] = clip_space(rect, window);
        // SAFETY: the context is current; program, buffer and texture are alive; the buffer holds the four corners.
        unsafe {
            gl.disable(glow::SCISSOR_TEST);
            if opaque {
                gl.disable(glow::BLEND);
            } else {
                gl.enable(glow::BLEND);
                gl.blend_func(glow::SRC_ALPHA, glow::ONE_MINUS_SRC_ALPHA);
            }
            gl.active_texture(glow::TEXTURE0);
            gl.bind_texture(glow::TEXTURE_2D, Some(texture.name));
            if texture.nearest != Some(nearest) {
                let filter = if nearest { glow::NEAREST } else { glow::LINEAR }.cast_signed();
                gl.tex_parameter_i32(glow::TEXTURE_2D, glow::TEXTURE_MIN_FILTER, filter);
                gl.tex_parameter_i32(glow::TEXTURE_2D, glow::TEXTURE_MAG_FILTER, filter);
                texture.nearest = Some(nearest);
            }
            gl.use_program(Some(self.name));
            gl.uniform_4_f32(self.place.as_ref(), x, y, width, height);
            gl.uniform_1_f32(self.opaque.as_ref(), if opaque { 1.0 } else { 0.0 });
            gl.uniform_1_i32(self.image.as_ref(), 0);
            if self.array.is_some() {
                gl.bind_vertex_array(self.array);
            }
            gl.bind_buffer(glow::ARRAY_BUFFER, Some(self.corners));
            gl.enable_vertex_attrib_array(self.position);
            gl.vertex_attrib_pointer_f32(self.position, 2, glow::FLOAT, false, 8, 0);
            gl.draw_arrays(glow::TRIANGLE_STRIP, 0, 4);
            gl.disable_vertex_attrib_array(self.position);
            if self.array.is_some() {
                gl.bind_vertex_array(None);
            }
            gl.bind_buffer(glow::ARRAY_BUFFER, None);
        }
    }

    fn destroy(&self, gl: &glow::Context) {
        // SAFETY: the context is current, the names are ours and used no more.
        unsafe {
            gl.delete_program(self.name);
            gl.delete_buffer(self.corners);
            if let Some(array) = self.array {
                gl.delete_vertex_array(array);
            }
        }
    }
}

/// The vertex and the fragment shader in the dialect of `version`.
fn sources(version: ShaderVersion) -> (String, String) {
    let new = version.is_new_shader_interface();
    let precision = if version.is_embedded() { "precision highp float;\n" } else { "" };
    let head = format!("{}{precision}", version.version_declaration());
    let (input, output, varying, sample, colour, declare) = if new {
        ("in", "out", "in", "texture", "colour", "out vec4 colour;\n")
    } else {
        ("attribute", "varying", "varying", "texture2D", "gl_FragColor", "")
    };
    let vertex = format!(
        "{head}uniform vec4 place;\n{input} vec2 unit;\n{output} vec2 at;\n\
         void main() {{\n\
         gl_Position = vec4(place.xy + unit * place.zw, 0.0, 1.0);\n\
         at = vec2(unit.x, 1.0 - unit.y);\n}}\n"
    );
    let fragment = format!(
        "{head}uniform sampler2D image;\nuniform float opaque;\n{varying} vec2 at;\n{declare}\
         void main() {{\n\
         vec4 texel = {sample}(image, at);\n\
         {colour} = vec4(texel.bgr, max(texel.a, opaque));\n}}\n"
    );
    (vertex, fragment)
}

fn non_zero(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN)
}
