# Boot sector (BIOS Boot Specification; INT 13h extensions, EDD): Intel syntax.
#
# The disk is: this sector, a sector with the command line (ends in NUL), the probe as it lies in memory from 1 MiB on.
# `assets/build.rs` fills in the three numbers after the jump.

.set COMMAND_LINE, 0x10000          # where the disk's second sector goes
.set PROGRAM, 0x10200               # and the program behind it
.set DESTINATION, 0x100000
.set MEMORY_MAP, 0x7000
.set MEMORY_MAP_END, 0x7be0
.set STACK, 0x7000
.set CHUNK, 64                      # sectors a read
.set COM1, 0x3f8
.set MESSAGE_BYTES, 29

.section .loader, "awx"
.code16
.global loader
loader:
    jmp 1f
.balign 4
sectors:    .long 0                 # to read: command line and program
dwords:     .long 0                 # of the program
entry:      .long 0                 # its PVH entry point

1:  .byte 0xea                      # ljmp ptr16:16: some BIOSes enter at 07c0:0000
    .word 2f, 0
2:  cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, STACK
    sti
    cld
    mov [drive], dl

read:
    mov ax, [sectors]
    test ax, ax
    jz map
    cmp ax, CHUNK
    jbe 1f
    mov ax, CHUNK
1:  mov [packet_count], ax
    mov si, offset packet
    mov dl, [drive]
    mov ah, 0x42
    int 0x13
    jc failed
    mov ax, [packet_count]
    sub [sectors], ax
    add [packet_lba], ax
    shl ax, 5                       # paragraphs
    add [packet_segment], ax
    jmp read

failed:
    mov si, offset message
    mov cx, MESSAGE_BYTES
    mov dx, COM1
    rep outsb
1:  hlt
    jmp 1b

map:
    mov di, MEMORY_MAP
    xor ebx, ebx
1:  mov eax, 0xe820
    mov edx, 0x534d4150             # "SMAP"
    mov ecx, 20
    mov dword ptr [di + 20], 0
    int 0x15
    jc enter
    cmp eax, 0x534d4150
    jne enter
    inc word ptr [map_entries]
    add di, 24
    cmp di, MEMORY_MAP_END
    jae enter
    test ebx, ebx
    jnz 1b

enter:
    cli
    in al, 0x92                     # A20
    or al, 2
    and al, 0xfe
    out 0x92, al
    lgdt [gdt_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0xea
    .word protected, 8

.code32
protected:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esi, PROGRAM
    mov edi, DESTINATION
    mov ecx, [dwords]
    rep movsd
    mov ebx, offset start_info
    jmp [entry]

drive:  .byte 0
.balign 4
packet: .byte 16, 0
packet_count:   .word 0
                .word 0             # offset
packet_segment: .word COMMAND_LINE >> 4
packet_lba:     .quad 1

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 08: code
    .quad 0x00cf93000000ffff        # 10: data
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

.balign 8
start_info:
    .long 0x336ec578, 1, 0, 0       # magic, version, flags, modules
    .quad 0                         # module list
    .quad COMMAND_LINE
    .quad 0                         # root pointer: the probe looks for it
    .quad MEMORY_MAP
map_entries:
    .long 0, 0

message:
    .ascii "probe: the disk can't be read\n"

.org 510
    .word 0xaa55
