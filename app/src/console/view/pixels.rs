//! The renderer for real graphics cards: pixels on wgpu's Vulkan.
//!
//! pixels owns the surface, the device and the presentation. Its own picture buffer is a single pixel, because it
//! uploads all of it at every drawing; the guest's picture is a texture of ours on the same device, written where it
//! changed, and drawn in pixels' `render_with` with our own transform, before egui.
//!
//! `render_with` tries again without end while the surface is out of date, with the size it was last told. Under Wayland
//! a window's size is its own to change, so that ends. Under X11 the window manager changes it at any time: there this
//! renderer is used only when it is forced, and asks for the size before each drawing, which leaves a small gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use egui::TexturesDelta;
use egui_wgpu::{RendererOptions, ScreenDescriptor};
use pixels::{Pixels, PixelsBuilder, PixelsContext, SurfaceTexture};
use vmm_core::backend::display::{CursorImage, Mode, Rect};
use vmm_core::base::explain;
use winit::event_loop::ActiveEventLoop;
use winit::window::{Window, WindowAttributes};

use super::{FramebufferView, Scene, ViewError, WindowRect, clip_space, is_nearest, rows_of, uploads};

const FORMAT: wgpu::TextureFormat = wgpu::TextureFormat::Bgra8Unorm;
/// `Quad` of guest.wgsl: eight floats.
const QUAD_BYTES: u64 = 32;

/// Whether Vulkan drives something other than the CPU.
pub fn has_hardware() -> bool {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN))
        .iter()
        .any(|adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu)
}

/// See [`super::open`].
pub fn open(
    event_loop: &ActiveEventLoop,
    attributes: WindowAttributes,
) -> Result<(Arc<Window>, Box<dyn FramebufferView>), ViewError> {
    let window = event_loop.create_window(attributes).map_err(|e| ViewError::host("could not open a window", e))?;
    let window = Arc::new(window);
    let view = PixelsView::new(&window)?;
    Ok((window, Box::new(view)))
}

struct PixelsView {
    pixels: Pixels<'static>,
    size: (u32, u32),
    picture: Quad,
    cursor: Quad,
    layout: wgpu::BindGroupLayout,
    sampler: wgpu::Sampler,
    egui: egui_wgpu::Renderer,
    /// egui's textures to free once the drawing that may still show them is submitted.
    to_free: Vec<egui::TextureId>,
    failed: Arc<AtomicBool>,
    info: wgpu::AdapterInfo,
}

/// A texture and what draws it.
struct Quad {
    pipeline: wgpu::RenderPipeline,
    uniform: wgpu::Buffer,
    image: Option<Image>,
}

struct Image {
    texture: wgpu::Texture,
    bind_group: wgpu::BindGroup,
}

impl PixelsView {
    fn new(window: &Arc<Window>) -> Result<PixelsView, ViewError> {
        let size = window.inner_size();
        let size = (size.width.max(1), size.height.max(1));
        let surface = SurfaceTexture::new(size.0, size.1, window.clone());
        let pixels = PixelsBuilder::new(1, 1, surface)
            .wgpu_backend(wgpu::Backends::VULKAN)
            .texture_format(FORMAT)
            .surface_texture_format(FORMAT)
            .blend_state(wgpu::BlendState::REPLACE)
            // The window paces itself; where there is no mailbox, pixels waits for the vertical blank.
            .present_mode(wgpu::PresentMode::Mailbox)
            .build()
            .map_err(|e| ViewError::host("could not start Vulkan", explain(&e)))?;
        let device = pixels.device();
        let failed = Arc::new(AtomicBool::new(false));
        let report = failed.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            report.store(true, Ordering::Relaxed);
            eprintln!("orangery: the graphics failed: {error}");
        }));
        let shader = device.create_shader_module(wgpu::include_wgsl!("guest.wgsl"));
        let layout = bind_group_layout(device);
        let pipelines = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("guest"),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let quad = |entry, blend| Quad {
            pipeline: pipeline(device, &shader, &pipelines, entry, blend),
            uniform: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(entry),
                size: QUAD_BYTES,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }),
            image: None,
        };
        let sampler = device.create_sampler(&wgpu::SamplerDescriptor {
            label: Some("guest"),
            mag_filter: wgpu::FilterMode::Linear,
            min_filter: wgpu::FilterMode::Linear,
            ..Default::default()
        });
        Ok(PixelsView {
            picture: quad("picture", wgpu::BlendState::REPLACE),
            cursor: quad("pointer", wgpu::BlendState::ALPHA_BLENDING),
            egui: egui_wgpu::Renderer::new(device, FORMAT, RendererOptions { dithering: false, ..Default::default() }),
            info: pixels.adapter().get_info(),
            layout,
            sampler,
            size,
            to_free: Vec::new(),
            failed,
            pixels,
        })
    }

    fn image(&self, mode: Mode, uniform: &wgpu::Buffer) -> Image {
        let device = self.pixels.device();
        let texture = device.create_texture(&wgpu::TextureDescriptor {
            label: Some("guest"),
            size: wgpu::Extent3d { width: mode.width, height: mode.height, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: FORMAT,
            usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        });
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("guest"),
            layout: &self.layout,
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: wgpu::BindingResource::TextureView(&view) },
                wgpu::BindGroupEntry { binding: 2, resource: wgpu::BindingResource::Sampler(&self.sampler) },
            ],
        });
        Image { texture, bind_group }
    }

    fn check_size(&self, mode: Mode) -> Result<(), ViewError> {
        let max = self.max_texture_side();
        if mode.width > max || mode.height > max {
            return Err(ViewError::TooLarge { width: mode.width, height: mode.height, max });
        }
        Ok(())
    }

    fn write(&self, texture: &wgpu::Texture, mode: Mode, pixels: &[u8], rect: Rect) {
        let Some(rows) = rows_of(rect, mode, pixels) else { return };
        self.pixels.queue().write_texture(
            wgpu::TexelCopyTextureInfo {
                texture,
                mip_level: 0,
                origin: wgpu::Origin3d { x: rect.x, y: rect.y, z: 0 },
                aspect: wgpu::TextureAspect::All,
            },
            rows,
            wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(mode.width * 4), rows_per_image: None },
            wgpu::Extent3d { width: rect.width, height: rect.height, depth_or_array_layers: 1 },
        );
    }

    fn place(&self, quad: &Quad, rect: WindowRect, nearest: bool) {
        let Some(image) = &quad.image else { return };
        let place = clip_space(rect, self.size);
        let (width, height) = (image.texture.width() as f32, image.texture.height() as f32);
        let scale = rect.2 as f32 / width;
        let values = [place[0], place[1], place[2], place[3], width, height, scale, if nearest { 1.0 } else { 0.0 }];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.pixels.queue().write_buffer(&quad.uniform, 0, &bytes);
    }
}

impl FramebufferView for PixelsView {
    fn resize(&mut self, width: u32, height: u32) {
        // A surface larger than the device allows is left as it is; the window system scales or crops.
        if self.pixels.resize_surface(width.max(1), height.max(1)).is_ok() {
            self.size = (width.max(1), height.max(1));
        }
    }

    fn upload(&mut self, mode: Mode, pixels: &[u8], damage: &[Rect]) -> Result<(), ViewError> {
        let old = self.picture.image.as_ref().map(|i| (i.texture.width(), i.texture.height()));
        let is_new = old != Some((mode.width, mode.height));
        if is_new {
            self.picture.image = None;
            self.check_size(mode)?;
            self.picture.image = Some(self.image(mode, &self.picture.uniform));
        }
        if let Some(image) = &self.picture.image {
            for rect in uploads(mode, is_new, damage) {
                self.write(&image.texture, mode, pixels, rect);
            }
        }
        Ok(())
    }

    fn upload_cursor(&mut self, image: &CursorImage) -> Result<(), ViewError> {
        let mode = Mode { width: image.width, height: image.height };
        self.cursor.image = None;
        self.check_size(mode)?;
        let new = self.image(mode, &self.cursor.uniform);
        self.write(&new.texture, mode, &image.pixels, Rect::full(mode));
        self.cursor.image = Some(new);
        Ok(())
    }

    fn update_overlay(&mut self, textures: TexturesDelta) {
        let (device, queue) = (self.pixels.device(), self.pixels.queue());
        for (id, delta) in &textures.set {
            self.egui.update_texture(device, queue, *id, delta);
        }
        self.to_free.extend(textures.free);
    }

    fn draw(&mut self, window: &Window, scene: &Scene<'_>) -> Result<(), ViewError> {
        let nearest = scene.picture.as_ref().is_some_and(is_nearest);
        let size = window.inner_size();
        if (size.width.max(1), size.height.max(1)) != self.size {
            self.resize(size.width, size.height);
        }
        if let Some(placement) = &scene.picture {
            let rect = (placement.x, placement.y, placement.width, placement.height);
            self.place(&self.picture, rect, nearest);
        }
        if let Some(rect) = scene.cursor {
            self.place(&self.cursor, rect, nearest);
        }
        let screen =
            ScreenDescriptor { size_in_pixels: [self.size.0, self.size.1], pixels_per_point: scene.pixels_per_point };
        let (egui, picture, cursor) = (&mut self.egui, &self.picture, &self.cursor);
        window.pre_present_notify();
        self.pixels
            .render_with(|encoder, target, PixelsContext { device, queue, .. }| {
                egui.update_buffers(device, queue, encoder, scene.overlay, &screen);
                let mut pass = encoder
                    .begin_render_pass(&wgpu::RenderPassDescriptor {
                        label: Some("console"),
                        color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                            view: target,
                            depth_slice: None,
                            resolve_target: None,
                            ops: wgpu::Operations {
                                load: wgpu::LoadOp::Clear(backdrop(scene.backdrop)),
                                store: wgpu::StoreOp::Store,
                            },
                        })],
                        ..Default::default()
                    })
                    .forget_lifetime();
                let quads = [(scene.picture.is_some(), picture), (scene.cursor.is_some(), cursor)];
                for (_, quad) in quads.iter().filter(|(shown, _)| *shown) {
                    if let Some(image) = &quad.image {
                        pass.set_pipeline(&quad.pipeline);
                        pass.set_bind_group(0, &image.bind_group, &[]);
                        pass.draw(0..4, 0..1);
                    }
                }
                if !scene.overlay.is_empty() {
                    egui.render(&mut pass, scene.overlay, &screen);
                }
                Ok(())
            })
            .map_err(|e| ViewError::host("could not draw with Vulkan", explain(&e)))?;
        for id in self.to_free.drain(..) {
            self.egui.free_texture(&id);
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(ViewError::host("could not draw with Vulkan", "the device reported an error"));
        }
        Ok(())
    }

    fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    fn max_texture_side(&self) -> u32 {
        self.pixels.device().limits().max_texture_dimension_2d
    }

    fn description(&self) -> String {
        format!("pixels, {:?}, {}", self.info.backend, self.info.name)
    }
}

fn backdrop([red, green, blue]: [u8; 3]) -> wgpu::Color {
    let channel = |value: u8| f64::from(value) / 255.0;
    wgpu::Color { r: channel(red), g: channel(green), b: channel(blue), a: 1.0 }
}

fn bind_group_layout(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    let entry = |binding, visibility, ty| wgpu::BindGroupLayoutEntry { binding, visibility, ty, count: None };
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("guest"),
        entries: &[
            entry(
                0,
                wgpu::ShaderStages::VERTEX_FRAGMENT,
                wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: false,
                    min_binding_size: wgpu::BufferSize::new(QUAD_BYTES),
                },
            ),
            entry(
                1,
                wgpu::ShaderStages::FRAGMENT,
                wgpu::BindingType::Texture {
                    sample_type: wgpu::TextureSampleType::Float { filterable: true },
                    view_dimension: wgpu::TextureViewDimension::D2,
                    multisampled: false,
                },
            ),
            entry(2, wgpu::ShaderStages::FRAGMENT, wgpu::BindingType::Sampler(wgpu::SamplerBindingType::Filtering)),
        ],
    })
}

fn pipeline(
    device: &wgpu::Device,
    shader: &wgpu::ShaderModule,
    layout: &wgpu::PipelineLayout,
    entry: &'static str,
    blend: wgpu::BlendState,
) -> wgpu::RenderPipeline {
    device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: Some(entry),
        layout: Some(layout),
        vertex: wgpu::VertexState {
            module: shader,
            entry_point: Some("corner"),
            compilation_options: Default::default(),
            buffers: &[],
        },
        primitive: wgpu::PrimitiveState { topology: wgpu::PrimitiveTopology::TriangleStrip, ..Default::default() },
        depth_stencil: None,
        multisample: wgpu::MultisampleState::default(),
        fragment: Some(wgpu::FragmentState {
            module: shader,
            entry_point: Some(entry),
            compilation_options: Default::default(),
            targets: &[Some(wgpu::ColorTargetState {
                format: FORMAT,
                blend: Some(blend),
                write_mask: wgpu::ColorWrites::ALL,
            })],
        }),
        multiview_mask: None,
        cache: None,
    })
}

/// Waits for a future of wgpu, whose native back ends are ready at once.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::park();
    }
}
