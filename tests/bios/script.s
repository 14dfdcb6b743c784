# Boot sector (BIOS Boot Specification; INT 13h extensions, EDD): Intel syntax.
#
# The disk is: this sector, then a script of so many sectors as the number after the jump says, 64 KiB at most. It is read
# to segment SCRIPT and run with its address in DS:SI. A command is a byte, then its operands, words unless named:
#
#   0 step                              sends 'R' on COM1 and waits for a byte from there
#   1 int10 AX BX CX DX BP DI ES        sends the two bytes of AX afterwards
#   2 out8  PORT byte
#   3 out16 PORT VALUE
#   4 fill  SEGMENT OFFSET COUNT byte
#   5 copy  SEGMENT OFFSET COUNT bytes  the bytes follow
#   6 read  SEGMENT OFFSET              sends the byte that is there
#   7 or    SEGMENT OFFSET byte         reads, combines and writes in one instruction
#   8 echo                              sends each byte that comes on COM1 back as two digits, until that is a 'q'

.set SCRIPT, 0x1000
.set STACK, 0x7000
.set CHUNK, 64                      # sectors a read
.set COM1, 0x3f8
.set LINE_STATUS, 0x3fd

# The assembler would make it a call with a 32-bit return address.
.macro near function
    .byte 0xe8
    .word \function - (. + 2)
.endm

.section .loader, "awx"
.code16
.global loader
loader:
    jmp 1f
.balign 4
sectors:    .word 0

1:  .byte 0xea                      # ljmp ptr16:16: some BIOSes enter at 07c0:0000
    .word 2f, 0
2:  cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, STACK
    sti
    cld
    mov [drive], dl

load:
    mov ax, [sectors]
    test ax, ax
    jz run
    cmp ax, CHUNK
    jbe 1f
    mov ax, CHUNK
1:  mov [packet_count], ax
    mov si, offset packet
    mov dl, [drive]
    mov ah, 0x42
    int 0x13
    jc stop
    mov ax, [packet_count]
    sub [sectors], ax
    add [packet_lba], ax
    shl ax, 5                       # paragraphs
    add [packet_segment], ax
    jmp load

stop:
    hlt
    jmp stop

run:
    mov ax, SCRIPT
    mov ds, ax
    xor si, si
next:
    lodsb
    cbw
    mov bx, ax
    shl bx, 1
    jmp word ptr cs:[commands + bx]

step:
    mov al, 'R'
    near send
    near receive
    jmp next

int10:
    lodsw
    push ax
    lodsw
    mov bx, ax
    lodsw
    mov cx, ax
    lodsw
    mov dx, ax
    lodsw
    mov bp, ax
    lodsw
    mov di, ax
    lodsw
    mov es, ax
    pop ax
    push ds
    push si
    int 0x10
    pop si
    pop ds
    near send
    mov al, ah
    near send
    jmp next

out8:
    lodsw
    mov dx, ax
    lodsb
    out dx, al
    jmp next

out16:
    lodsw
    mov dx, ax
    lodsw
    out dx, ax
    jmp next

fill:
    near place
    mov cx, ax
    lodsb
    rep stosb
    jmp next

copy:
    near place
    mov cx, ax
    rep movsb
    jmp next

read:
    lodsw
    mov es, ax
    lodsw
    mov di, ax
    mov al, es:[di]
    near send
    jmp next

combine:
    lodsw
    mov es, ax
    lodsw
    mov di, ax
    lodsb
    or es:[di], al
    jmp next

# Takes segment and offset, and one word more, which is returned in AX.
place:
    lodsw
    mov es, ax
    lodsw
    mov di, ax
    lodsw
    .byte 0xc3                      # ret, with a 16-bit address too

echo:
    near receive
    push ax
    shr al, 4
    near digit
    pop ax
    push ax
    and al, 15
    near digit
    pop ax
    cmp al, 'q'
    jne echo
    jmp next

# Waits for a byte and returns it in AL; DX is lost.
receive:
    mov dx, LINE_STATUS
1:  in al, dx
    test al, 1
    jz 1b
    mov dx, COM1
    in al, dx
    .byte 0xc3                      # ret, with a 16-bit address too

# Sends the digit of AL, which is less than 16.
digit:
    add al, '0'
    cmp al, '9'
    jbe send
    add al, 'a' - '9' - 1

# Sends AL; only DX is lost.
send:
    mov dx, COM1
    out dx, al
    .byte 0xc3                      # ret, with a 16-bit address too

.balign 2
commands:
    .word step, int10, out8, out16, fill, copy, read, combine, echo

drive:  .byte 0
.balign 4
packet: .byte 16, 0
packet_count:   .word 0
                .word 0             # offset
packet_segment: .word SCRIPT
packet_lba:     .quad 1

.org 510
    .word 0xaa55
