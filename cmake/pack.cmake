# Builds libmrc_cuda.so if a Python with Triton can compile its kernels

# These sources as a package, under a name that no installed package has
set(sources ${CMAKE_BINARY_DIR}/sources)
file(MAKE_DIRECTORY ${sources}/mrc_sources)
foreach(folder core kernels)
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/${folder} ${sources}/mrc_sources/${folder} COPY_ON_ERROR SYMBOLIC)
endforeach()

set(python_path ${sources})
if(MRC_PACK_PYTHON)
  set(python ${MRC_PACK_PYTHON})  # not what pip's isolated build puts in PYTHONPATH
else()
  find_package(Python COMPONENTS Interpreter)
  set(python ${Python_EXECUTABLE})
  if(DEFINED ENV{PYTHONPATH})
    string(APPEND python_path ":$ENV{PYTHONPATH}")
  endif()
endif()
set(python ${CMAKE_COMMAND} -E env --unset=TRITON_INTERPRET PYTHONPATH=${python_path} ${python})

execute_process(
  COMMAND ${python} -c [[
import sys, importlib.util
missing = [name for name in ("torch", "triton", "tqdm") if not importlib.util.find_spec(name)]
if missing:
    sys.exit(f"{sys.executable} has no {missing[0]}")
]]
  RESULT_VARIABLE failed ERROR_VARIABLE why OUTPUT_QUIET ERROR_STRIP_TRAILING_WHITESPACE)
if(failed AND MRC_PACK STREQUAL "AUTO")
  message(NOTICE "libmrc_cuda.so is not built: ${why}; MRC_PACK_PYTHON names a Python with the extras torch and triton")
  return()
elseif(failed)
  message(FATAL_ERROR "libmrc_cuda.so cannot be built: ${why}. Give MRC_PACK_PYTHON a Python with the extras torch and "
    "triton, or MRC_PACK=OFF")
endif()

set(pack ${CMAKE_BINARY_DIR}/pack)
file(GLOB kernel_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*/triton_kernel.py)
add_custom_command(
  OUTPUT ${pack}/cubins.bin ${pack}/cubins.inc
  COMMAND ${python} -m mrc_sources.kernels.build_pack ${pack}
    --architectures ${MRC_PACK_ARCHITECTURES} --types ${MRC_PACK_TYPES}
  DEPENDS ${kernel_sources} kernels/cubins.py kernels/build_pack.py VERBATIM COMMENT "Compiling the CUDA kernels by Triton")

add_library(mrc_cuda SHARED kernels/csrc/mrc_cuda.cpp ${pack}/cubins.inc)
set_source_files_properties(kernels/csrc/mrc_cuda.cpp PROPERTIES OBJECT_DEPENDS "${pack}/cubins.inc;${pack}/cubins.bin")
target_compile_options(mrc_cuda PRIVATE -Wall -Wextra -O2)
target_compile_definitions(mrc_cuda PRIVATE "MRC_CUBINS=\"${pack}/cubins.bin\"")
target_include_directories(mrc_cuda PRIVATE ${pack})
target_link_libraries(mrc_cuda PRIVATE ${CMAKE_DL_LIBS})
install(TARGETS mrc_cuda LIBRARY DESTINATION mrc_edit/kernels)
