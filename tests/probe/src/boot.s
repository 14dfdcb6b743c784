# Entry from a PVH loader (32-bit protected mode, ebx = start_info) up to Rust at CPL 3; Intel syntax.
#
# Nearly everything runs at CPL 3 with IOPL 3: software KVM (KVM_PVM) interprets CPL 0 slowly and CPL 3 runs natively.
# So this file does only what needs privilege, and as few instructions of it as possible.

.set SELECTOR_CODE0, 0x08
.set SELECTOR_DATA0, 0x10
.set SELECTOR_DATA3, 0x1b
.set SELECTOR_CODE3, 0x23
.set SELECTOR_TSS, 0x28
.set SELECTOR_CODE32, 0x38
.set RFLAGS_USER, 0x3202            # IOPL 3, IF, and the bit that is always one
.set CR0_LONG, 0x80000033           # PG, NE, ET, MP, PE
.set CR4_LONG, 0x620                # PAE, OSFXSR, OSXMMEXCPT
.set STACK_BYTES, 0x20000
.set KERNEL_STACK_BYTES, 0x1000
.set TSS_RSP0, 4
.set TSS_IO_MAP, 0x66
.set TSS_BYTES, 0x68 + 0x2000 + 1   # with an I/O bitmap: KVM_PVM ignores IOPL, but honours the bitmap
.set HELLO_BYTES, 14
.set TRAMPOLINE, 0x8000             # where the trampoline is copied to, and its parts there
.set TRAMPOLINE_ARGUMENTS, 0x8008
.set TRAMPOLINE_GDT, 0x8028

.section .note.pvh, "a", @note
.balign 4
    .long 4, 4, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry

.section .text.boot, "ax"
.code32
.global pvh_entry
pvh_entry:
    # The first line comes before everything else: the time from exec to it is measured.
    cld
    mov esi, offset hello
    mov ecx, HELLO_BYTES
    mov edx, 0x3f8
    rep outsb

    # Firmware may have left the interrupt controllers unmasked, with vectors that mean exceptions here.
    mov al, 0xff
    out 0x21, al
    out 0xa1, al

    # The first 16 MiB, user accessible; `memory.rs` maps the rest at full speed.
    mov edi, offset pml4
    mov dword ptr [edi], offset pdpt + 7
    mov edi, offset pdpt
    mov dword ptr [edi], offset page_directories + 7
    mov edi, offset page_directories
    mov eax, 0x87                   # present, writable, user, 2 MiB
    mov ecx, 8
1:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 1b

    # The TSS: a stack for interrupts, and an I/O bitmap of zeros that permits every port.
    mov eax, offset tss
    mov dword ptr [eax + TSS_RSP0], offset kernel_stack_top
    mov word ptr [eax + TSS_IO_MAP], 0x68
    # The descriptor's base is scattered: put it together here.
    mov edi, offset gdt_tss
    mov [edi + 2], ax
    shr eax, 16
    mov [edi + 4], al
    mov [edi + 7], ah
    mov byte ptr [edi + 5], 0x89    # available again after a reset without a reload

    mov edi, offset gdt_pointer
    lgdt [edi]
    mov eax, offset pml4
    mov cr3, eax
    mov eax, CR4_LONG
    mov cr4, eax
    mov ecx, 0xc0000080             # EFER
    xor edx, edx
    mov eax, 0x100                  # LME
    wrmsr
    mov eax, CR0_LONG
    mov cr0, eax
    .byte 0xea                      # ljmp ptr16:32
    .long long_mode
    .word SELECTOR_CODE0

.code64
long_mode:
    mov eax, SELECTOR_DATA0
    mov ss, eax
    mov eax, SELECTOR_DATA3
    mov ds, eax
    mov es, eax
    mov edi, offset idt_pointer
    lidt [rdi]
    mov eax, SELECTOR_TSS
    ltr ax
    mov esp, offset kernel_stack_top
    push SELECTOR_DATA3
    push offset stack_top
    push RFLAGS_USER
    push SELECTOR_CODE3
    push offset user_entry
    iretq

user_entry:
    mov edi, offset bss_start
    mov ecx, offset bss_end
    sub ecx, edi
    xor eax, eax
    rep stosb
    mov edi, ebx
    xor ebp, ebp
    call probe_main
    ud2

# Where an application processor lands after `trampoline` below: eax = its slot, from 1.
# Its stacks, its TSS and its descriptor were prepared by `smp.rs`.
ap_long_mode:
    mov ecx, SELECTOR_DATA0
    mov ss, ecx
    mov ecx, SELECTOR_DATA3
    mov ds, ecx
    mov es, ecx
    mov edi, offset idt_pointer
    lidt [rdi]
    mov ebx, TRAMPOLINE_ARGUMENTS
    mov eax, [rbx + 8]
    ltr ax
    mov rsp, [rbx + 16]
    mov rax, [rbx + 24]
    push SELECTOR_DATA3
    push rax
    push RFLAGS_USER
    push SELECTOR_CODE3
    push offset ap_user_entry
    mov edi, [rbx]
    iretq

ap_user_entry:
    xor ebp, ebp
    call probe_ap_main
    ud2

# Copied to 0x8000, where the start-up IPI starts each application processor in real mode.
.section .rodata
.balign 8
.global trampoline, trampoline_end
.code16
trampoline:
    jmp 1f
.balign 8
    .quad 0                         # arguments, filled by `smp.rs`: slot,
    .quad 0                         # TSS selector,
    .quad 0                         # CPL 0 stack,
    .quad 0                         # CPL 3 stack
    .word gdt_end - gdt - 1         # TRAMPOLINE_GDT
    .long gdt
1:  cli
    xor ax, ax
    mov ds, ax
    mov eax, TRAMPOLINE_GDT
    .byte 0x66                      # with a 32-bit base
    lgdt [eax]
    mov eax, CR4_LONG
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER
    xor edx, edx
    mov eax, 0x100                  # LME
    wrmsr
    mov eax, 0x33                   # protected mode first: not every emulator enters long mode from real mode
    mov cr0, eax
    .byte 0x66, 0xea                # ljmp ptr16:32
    .long trampoline32 - trampoline + TRAMPOLINE
    .word SELECTOR_CODE32
.code32
trampoline32:
    mov eax, CR0_LONG
    mov cr0, eax
    .byte 0xea
    .long ap_long_mode
    .word SELECTOR_CODE0
trampoline_end:

hello:
    .ascii "probe: hello\r\n"

.section .data
.balign 16
.global gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 08: 64-bit code, CPL 0
    .quad 0x00cf93000000ffff        # 10: data, CPL 0
    .quad 0x00cff3000000ffff        # 18: data, CPL 3
    .quad 0x00affb000000ffff        # 20: 64-bit code, CPL 3
gdt_tss:
    .quad 0x0000890000002068        # 28: TSS of the boot processor
    .quad 0
    .quad 0x00cf9b000000ffff        # 38: 32-bit code, for the trampoline
    .fill 2 * 63, 8, 0              # 40: TSS of up to 63 application processors, filled by `smp.rs`
gdt_end:

.balign 8
    .word 0, 0, 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .word 0, 0, 0
idt_pointer:
    .word 4095
    .quad idt

.section .boot_bss, "aw", @nobits
.balign 4096
.global pml4, pdpt, page_directories, idt, stack_top
pml4: .skip 4096
pdpt: .skip 4096
page_directories: .skip 4 * 4096    # 4 GiB
idt: .skip 4096
kernel_stack: .skip KERNEL_STACK_BYTES
kernel_stack_top:
stack: .skip STACK_BYTES
stack_top:
.balign 16
tss: .skip TSS_BYTES
