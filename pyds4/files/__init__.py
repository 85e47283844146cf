"""Model files: get, check, convert, quantise, and know before loading.

``memory``      will a model fit, with figures; guards every load
``doctor``      the machine, and which files fit it at which context
``catalogue``   published files by short name; ``download`` fetches them, ``manifest`` binds them
``checkpoint``  original checkpoints (safetensors); ``convert`` writes GGUF from them
``quantize``    smaller formats, by recipes; ``imatrix`` measures what matters
``verify``      does a file still say what it should; ``diff`` what distinguishes two
"""
